"""From a problem on rows of data to a server and its workers; `trainer` is where a run begins."""
