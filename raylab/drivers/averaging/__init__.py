"""Averaging of data-parallel workers: from a user's model and batches to workers."""
