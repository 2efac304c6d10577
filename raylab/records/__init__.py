"""What a run leaves behind: rows, a folder of files, checkpoints."""

from raylab.records.checkpoints import CheckpointStore
from raylab.records.folder import RunFolder, check_run_name, new_run_name
from raylab.records.hold import STALE_S, Hold
from raylab.records.late_arrays import LateArray, LateRows
from raylab.records.rows import RowMerger
from raylab.records.saved_checkpoint import Part, SavedCheckpoint
from raylab.records.storage import Storage
from raylab.records.tensorboard import EventWriter
from raylab.records.timeline import timeline_rows

__all__ = [
    "STALE_S",
    "CheckpointStore",
    "EventWriter",
    "Hold",
    "LateArray",
    "LateRows",
    "Part",
    "RowMerger",
    "RunFolder",
    "SavedCheckpoint",
    "Storage",
    "check_run_name",
    "new_run_name",
    "timeline_rows",
]
