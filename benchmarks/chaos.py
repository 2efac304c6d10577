"""Claim: a run that loses any of its processes ends as if it had lost none.

    python -m benchmarks.chaos --rounds 3
    python -m benchmarks.chaos --wings pipeline-adl server-dis_dfsdca --faults worker sigterm

Every round takes a short run of `raylab train`, waits until a checkpoint of a drawn step is whole,
and then ends or stops a process of it; what ends with an error is taken up by `raylab resume`. The
final weights are compared with those of the undisturbed run: bit for bit where the method promises
it, by the duality gap where messages are applied as they come.

    wing     a training command, short, with a checkpoint every few steps
    fault    worker   SIGKILL to one process of the stages, workers or servers, chosen by the seed
             driver   SIGKILL to the command
             sigterm, sighup, sigint   to the command, as by a scheduler, a closed terminal, Ctrl-C
             raylet, gcs   SIGKILL to Ray's own process of the node, and of the cluster
             pause    SIGSTOP to one worker for some seconds, then SIGCONT

Columns: the exit code of the disturbed command, how often `raylab resume` was needed, whether the
weights are the undisturbed run's, and how many lines the disturbed command wrote to standard error
beside its rows of metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

_IMAGES = (
    "model=mlp",
    "data=random:n=512,shape=1x4x4,classes=3",
    "batch_size=16",
    "epochs=40",
    "checkpoint_every=40",
    "checkpoint_minutes=0",
)
_ROWS = (
    "problem=ridge",
    "data=sparse:n=2000,d=50,density=0.4",
    "workers=2",
    "cpus_per_worker=0.1",
    "checkpoint_minutes=0",
    "epochs=100",
    "tolerance=0",
    # A round takes 50 ms, so that there is time to hit it.
    "sample_s=5e-5",
)
_STAGES = (*_IMAGES, "stages=2", "cpus_per_stage=0.1", "timeline=0")
_REPLICAS = (*_IMAGES, "workers=2", "cpus_per_worker=0.1")


@dataclass(frozen=True)
class Wing:
    """A run to disturb.

    Attributes:
        words: after `raylab train`.
        steps: the checkpoint to wait for is drawn from these, so that the run is not over then.
        identical: the method promises the undisturbed run's weights bit for bit.
    """

    words: tuple[str, ...]
    steps: int
    identical: bool


WINGS = {
    **{
        f"pipeline-{method}": Wing((method, *_STAGES), steps=800, identical=True)
        for method in ("bp", "gpipe", "1f1b", "ddg", "fr", "adl")
    },
    **{
        f"averaging-{method}": Wing((method, *_REPLICAS), steps=400, identical=True)
        for method in ("local_sgd", "dasgd")
    },
    "server-cocoa_plus": Wing(
        ("cocoa_plus", *_ROWS, "checkpoint_every=5"), steps=60, identical=True
    ),
    "server-dis_dfsdca": Wing(
        ("dis_dfsdca", *_ROWS, "checkpoint_every=50"), steps=1500, identical=False
    ),
}
SIGNALS = {"sigterm": signal.SIGTERM, "sighup": signal.SIGHUP, "sigint": signal.SIGINT}
FAULTS = ("worker", "driver", *SIGNALS, "raylet", "gcs", "pause")
MOST_RESUMES = 3
PAUSE_S = 5.0
SAME_GAP = 1e-9


@dataclass
class Round:
    """Outcome of one disturbed run."""

    wing: str
    fault: str
    seed: int
    saved: int
    exit_code: int
    resumes: int
    same: bool
    lines: int
    last_line: str


def _children() -> dict[int, list[tuple[int, str]]]:
    """Return every process's children as (pid, command line)."""
    found: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # It has ended meanwhile.
            continue
        # The name in parentheses may hold spaces; the parent is the second field after it.
        parent = int(stat.rpartition(")")[2].split()[1])
        found.setdefault(parent, []).append((int(entry.name), command))
    return found


def _descendants(pid: int) -> Iterator[tuple[int, str]]:
    children = _children()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child[0])
            yield child


def _victims(driver: int, fault: str) -> list[int]:
    """Return the processes of a run's own Ray that a fault may hit, in a fixed order."""
    processes = sorted(_descendants(driver))
    if fault in ("worker", "pause"):
        # Actors call themselves after their class; idle workers and Ray's own actors are spared.
        return [
            pid
            for pid, command in processes
            if re.match(r"ray::(Stage|Server|Solver|Shard|RayTrainWorker)", command)
        ]
    name = "raylet/raylet" if fault == "raylet" else "gcs_server"
    return [pid for pid, command in processes if name in command.split(" ")[0]]


def _newest_step(run: Path) -> int:
    """Return the step of a run's newest whole checkpoint; 0: it has none."""
    manifests = run.glob("checkpoints/step-*/manifest.json")
    return max((int(each.parent.name.removeprefix("step-")) for each in manifests), default=0)


def _command(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "raylab", *words],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )


def _disturb(process: subprocess.Popen[bytes], fault: str, draw: random.Random) -> bool:
    """Carry out a fault; return whether there was still something to hit."""
    if fault == "driver" or fault in SIGNALS:
        process.send_signal(SIGNALS.get(fault, signal.SIGKILL))
        return True
    victims = _victims(process.pid, fault)
    if not victims:
        return False
    victim = draw.choice(victims)
    os.kill(victim, signal.SIGSTOP if fault == "pause" else signal.SIGKILL)
    if fault == "pause":
        time.sleep(PAUSE_S)
        os.kill(victim, signal.SIGCONT)
    return True


def _weights(run: Path) -> dict[str, torch.Tensor]:
    path = run / "checkpoints" / "final" / "model.pt"
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


def _same(wing: Wing, run: Path, undisturbed: Path) -> bool:
    if not wing.identical:
        gap: float = json.loads((run / "result.json").read_text())["metrics"]["duality_gap"]
        return abs(gap) <= SAME_GAP
    found, expected = _weights(run), _weights(undisturbed)
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def _told(log: Path) -> list[str]:
    """Return the lines of standard error that are no rows of metrics."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("epoch ")]


def play(name: str, fault: str, seed: int, storage: Path, timeout_s: float) -> Round | None:
    """Disturb a run once; None: it had ended before anything could be done to it.

    Raises:
        TimeoutError: a command did not end, and was killed.
    """
    wing = WINGS[name]
    draw = random.Random(f"{name}/{fault}/{seed}")  # noqa: S311 - chance, no secret
    run, log = storage / f"{name}-{fault}-{seed}", storage / f"{name}-{fault}-{seed}.log"
    after_step = draw.randint(1, wing.steps)
    moment_s = draw.random() * 0.3
    process = _command(["train", *wing.words, f"storage={storage}", f"name={run.name}"], log)
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and _newest_step(run) < after_step:
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"{run.name}: no checkpoint of step {after_step}, see {log}")
        time.sleep(0.02)
    time.sleep(moment_s)
    if process.poll() is not None or not _disturb(process, fault, draw):
        process.wait()
        return None
    saved = _newest_step(run)
    code = _wait(process, timeout_s, log)
    told, resumes, status = _told(log), 0, code
    while status != 0 and resumes < MOST_RESUMES:
        resumes += 1
        status = _wait(_command(["resume", str(run)], log), timeout_s, log)
    same = status == 0 and _same(wing, run, storage / f"{name}-undisturbed")
    return Round(
        wing=name,
        fault=fault,
        seed=seed,
        saved=saved,
        exit_code=code,
        resumes=resumes,
        same=same,
        lines=len(told),
        last_line=told[-1][:160] if told else "",
    )


def _wait(process: subprocess.Popen[bytes], timeout_s: float, log: Path) -> int:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise TimeoutError(f"a command did not end within {timeout_s:.0f} s, see {log}") from None


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--wings", nargs="+", choices=WINGS, default=list(WINGS))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--rounds", type=int, default=1, help="of each wing and fault")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds a command may take")
    parser.add_argument("--storage", type=Path, help="keep runs and logs here")
    options = parser.parse_args()
    storage = options.storage or Path(tempfile.mkdtemp(prefix="chaos-"))
    storage.mkdir(parents=True, exist_ok=True)
    failed = 0
    print("| wing | fault | seed | step saved | exit | resumes | as undisturbed | lines |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.wings:
        words = ["train", *WINGS[name].words, f"storage={storage}", f"name={name}-undisturbed"]
        if not (storage / f"{name}-undisturbed" / "result.json").exists():
            log = storage / f"{name}.log"
            if _wait(_command(words, log), options.timeout, log) != 0:
                raise SystemExit(f"the undisturbed run failed, see {log}")
        for fault in options.faults:
            for seed in range(options.seed, options.seed + options.rounds):
                found = play(name, fault, seed, storage, options.timeout)
                if found is None:
                    print(f"| {name} | {fault} | {seed} | ended before | | | | |", flush=True)
                    continue
                failed += not found.same
                print(
                    f"| {name} | {fault} | {seed} | {found.saved} | {found.exit_code} "
                    f"| {found.resumes} | {'yes' if found.same else 'NO'} | {found.lines} |",
                    flush=True,
                )
                with (storage / "rounds.jsonl").open("a") as stream:
                    stream.write(json.dumps(asdict(found)) + "\n")
    print(f"{failed} rounds ended otherwise than undisturbed; logs in {storage}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
