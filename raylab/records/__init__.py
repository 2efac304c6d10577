"""What a run leaves behind: rows, a folder of files, the result."""

from raylab.records.folder import RunFolder, new_run_name
from raylab.records.rows import RowMerger
from raylab.records.tensorboard import EventWriter
from raylab.records.timeline import timeline_rows

__all__ = ["EventWriter", "RowMerger", "RunFolder", "new_run_name", "timeline_rows"]
