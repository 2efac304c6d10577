"""Records into what a person sees: progress bar, final table, and the page of a run."""

from raylab.report.averaging_plan import averaging_tables, published_tables
from raylab.report.compare_table import compare_table
from raylab.report.plan import plan_tables
from raylab.report.progress import Progress
from raylab.report.run_record import RunRecord, read_run, read_runs
from raylab.report.table import final_table
from raylab.report.tuning_table import TrialLine, TuningView, tuning_table
from raylab.report.workers_table import workers_table

__all__ = [
    "Progress",
    "RunRecord",
    "TrialLine",
    "TuningView",
    "averaging_tables",
    "compare_table",
    "final_table",
    "plan_tables",
    "published_tables",
    "read_run",
    "read_runs",
    "tuning_table",
    "workers_table",
]
