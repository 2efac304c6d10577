"""Benchmarks: one file, one claim; none of them is needed to use the library."""
