"""`ray up` for real: over SSH on hosts of a LAN, from a laptop that is none of them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ray._common.utils import get_default_ray_temp_dir

from tests.cluster.hosts import Hosts, missing, until
from tests.tutorials import FILE, PAGES, Reader, blocks

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

HEAD, WORKERS, LAPTOP = 0, (1, 2), 3
EPOCHS = 60


@pytest.fixture
def lan(tmp_path) -> Iterator[Hosts]:
    before = outside()
    with Hosts([0, 1, 1, 0], tmp_path) as hosts:
        yield hosts
    assert hosts.processes() == {}
    assert outside() == before


def outside() -> tuple[str, str, bool]:
    """Return what a host might leave on this machine: mounts, links, Ray's notes of a cluster."""
    links = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True)
    mounts = Path("/proc/self/mountinfo").read_text()
    ours = Path(get_default_ray_temp_dir(), "cluster-raylab.state")
    return mounts, links.stdout, ours.exists()


def has_joined(lan: Hosts, worker: int) -> bool:
    """Tell whether Ray runs on a worker, and the command that has started it has ended."""
    names = lan.processes(worker).values()
    return "raylet" in names and "ray" not in names


def bring_up(lan: Hosts, line: str) -> None:
    """Bring the cluster up. On a busy machine a worker may not start in the 30 s that Ray gives it,
    and the autoscaler tries it once only: then again.
    """
    for tries_left in (2, 1, 0):
        lan.run(LAPTOP, line, tries=3)
        try:
            until(lambda: all(has_joined(lan, k) for k in WORKERS), "both workers", timeout_s=90)
        except AssertionError:
            if not tries_left:
                raise
        else:
            return


class Laptop:
    """Does on the laptop what docs/tutorials/cluster.md says, with this LAN's addresses and places.

    Args:
        lan: with the laptop.
        folder: that all hosts see.
    """

    def __init__(self, lan: Hosts, folder: Path) -> None:
        self.lan = lan
        self.here = folder / "here"
        self.runs = folder / "runs"
        self.here.mkdir()
        self.beside = contextlib.ExitStack()
        self._reader = Reader(self.here, self._carry_out)
        self._places = {
            **{f"10.0.0.{k + 1}": lan.addresses[k] for k in (HEAD, *WORKERS)},
            "~/.ssh/id_ed25519": str(lan.key),
            "/opt/raylab": sys.prefix,
            "/shared/runs": str(self.runs),
        }

    def follow(self, *sections: str) -> None:
        """Carry out the blocks of some sections."""
        page = [each for each in blocks(PAGES / "cluster.md") if each.section in sections]
        assert {each.section for each in page} == set(sections)
        self._reader.follow(replace(each, text=self._placed(each.text)) for each in page)

    def _placed(self, text: str) -> str:
        for written, meant in self._places.items():
            text = text.replace(written, meant)
        return text

    def _carry_out(self, command: str, folder: Path) -> str:
        line = f"cd {folder} && {command}"
        if command.startswith("ray dashboard"):
            self.beside.enter_context(self.lan.running(LAPTOP, line))
            until(lambda: ":8265 " in self.lan.run(LAPTOP, "ss -tln"), "the tunnel")
            return ""
        line = f"{{ {line}; }} 2> /tmp/told || {{ cat /tmp/told; false; }}"
        if " ray up " in command:
            bring_up(self.lan, line)
            return ""
        return self.lan.run(LAPTOP, line)


def test_a_cluster_comes_up_trains_tunes_bears_the_loss_of_a_node_and_goes_down(lan, tmp_path):
    laptop = Laptop(lan, tmp_path)
    with laptop.beside:
        laptop.follow(FILE, "Up", "A job", "A search")
        job = (
            f"train adl data=digits model=mlp epochs={EPOCHS} stages=2 checkpoint_every=50 "
            f"storage={laptop.runs}"
        )
        submit = f"cd {laptop.here} && raylab submit --"
        with lan.running(LAPTOP, f"{submit} {job} name=killed") as submitted:
            saved = laptop.runs / "killed" / "checkpoints"
            until(lambda: submitted.poll() or [*saved.glob("*/manifest.json")], "a checkpoint")
            (raylet,) = lan.raylets(WORKERS[0])
            lan.kill(raylet)
            said, _ = submitted.communicate(timeout=600)
        assert submitted.returncode == 0, said
    assert "(restart 1 of 3)" in said
    epochs = {"first": 3, "night": 2, "tuned": 5, "killed": EPOCHS}
    for name, epoch in epochs.items():
        result = json.loads((laptop.runs / name / "result.json").read_text())
        assert result["metrics"]["epoch"] == epoch, name
    laptop.follow("Down")
    assert lan.raylets(HEAD) == []
