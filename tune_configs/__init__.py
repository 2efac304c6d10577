"""The searches that ship with raylab: YAML, for `raylab tune NAME`."""
