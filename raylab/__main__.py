"""`python -m raylab` is `raylab`."""

from raylab.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
