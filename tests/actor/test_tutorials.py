"""The tutorials do what they say, block by block.

What of docs/tutorials/cluster.md needs hosts is done by tests/cluster/test_ray_up.py.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import ray

from actors.groups.warm import warm_actors
from raylab.drivers import ray_start
from tests.tutorials import HOSTS, PAGES, Reader, blocks, in_process, in_shell

pytestmark = [pytest.mark.actor, pytest.mark.timeout(1200)]

PROJECT = PAGES.parents[1]
ROOMS = ("actors", "cluster", "raylab", "tests", "tune_configs")


@pytest.fixture
def reader(session, cold, tmp_path, monkeypatch) -> Reader:
    """Return somebody who reads in a folder of this process; Ray is as if started for each command.

    The stages that a command leaves go before a search, which is another driver: nobody gives
    way to it.
    """
    monkeypatch.chdir(tmp_path)
    own = {ray.get_runtime_context().gcs_address}
    monkeypatch.setattr(ray_start, "_started", own)

    def carry_out(command: str, folder: Path) -> str:
        if " tune " in command:
            warm_actors().clear()
        return in_process(command, folder)

    return Reader(tmp_path, carry_out)


def test_what_is_done_on_this_machine(reader):
    reader.follow(blocks(PAGES / "local.md"))


def test_a_search_is_made_gone_on_with_and_its_best_is_trained(reader):
    reader.follow(blocks(PAGES / "tuning.md"))


def test_the_files_of_clusters_are_made_and_pass_their_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # the token is the reader's
    page = blocks(PAGES / "cluster.md")
    here = [block for block in page if block.section not in HOSTS]
    assert {block.section for block in page} > set(HOSTS)
    Reader(tmp_path).follow(here)


def test_an_algorithm_is_added_tested_and_run(tmp_path):
    checkout = tmp_path / "raylab"
    for room in ROOMS:
        shutil.copytree(PROJECT / room, checkout / room)
    shutil.copyfile(PROJECT / "pyproject.toml", checkout / "pyproject.toml")
    (checkout / ".venv").symlink_to(sys.prefix)
    in_checkout = in_shell({"PYTHONPATH": str(checkout), "RAY_ADDRESS": ""})
    Reader(checkout, in_checkout).follow(blocks(PAGES / "new_algorithm.md"))


def test_every_page_is_one_of_these():
    assert {page.name for page in PAGES.glob("*")} == {
        "cluster.md",
        "local.md",
        "new_algorithm.md",
        "tuning.md",
    }
    index = (PAGES.parent / "README.md").read_text(encoding="utf-8")
    for page in PAGES.glob("*.md"):
        assert f"(tutorials/{page.name})" in index
