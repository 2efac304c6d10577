"""Records into what a person sees: the progress bar and the final table."""

from raylab.report.plan import plan_tables
from raylab.report.progress import Progress
from raylab.report.table import final_table

__all__ = ["Progress", "final_table", "plan_tables"]
