"""A module of a user's own that has the name of one of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.unit


def started(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, whose files come before ours on the path."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_module_actors_of_a_users_own_is_named_where_raylab_is_imported(tmp_path: Path) -> None:
    (tmp_path / "actors.py").write_text("")
    (tmp_path / "script.py").write_text("import raylab")
    ended = started(tmp_path, "script.py")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert f"Python finds {tmp_path / 'actors.py'} first: rename that file" in last


def test_one_that_was_imported_before_raylab_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "actors.py").write_text("")
    lines = "import sys; sys.path.insert(0, 'mine'); import actors; sys.path.pop(0); import raylab"
    ended = started(tmp_path, "-c", lines)
    assert "mine/actors.py first: rename that file" in ended.stderr.splitlines()[-1]


def test_the_command_says_it_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "actors.py").write_text("")
    ended = started(tmp_path, "-m", "raylab", "train", "--list")
    assert ended.returncode == 2
    assert ended.stderr.startswith("raylab: error: `actors` must be the package beside raylab")
    assert len(ended.stderr.splitlines()) == 1


def test_other_names_of_ours_are_free_for_users(tmp_path: Path) -> None:
    for name in ("cluster", "tune_configs"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "actors").mkdir()  # a folder without __init__.py hides nothing
    assert "adl_digits" in started(tmp_path, "-m", "raylab", "tune", "--list").stdout
    made = started(tmp_path, "-m", "raylab", "cluster", "render", "--provider", "aws")
    assert (made.returncode, made.stderr) == (0, "")
