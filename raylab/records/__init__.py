"""What a run leaves behind: rows, a folder of files, the result."""

from raylab.records.folder import RunFolder, new_run_name
from raylab.records.rows import RowMerger

__all__ = ["RowMerger", "RunFolder", "new_run_name"]
