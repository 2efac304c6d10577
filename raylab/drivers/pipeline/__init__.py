"""From a user's model and batches to stage actors; `trainer` is where a run begins."""
