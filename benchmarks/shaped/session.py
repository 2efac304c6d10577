"""The benchmark itself, inside the namespaces: builds the network, runs the methods, tells."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.shaped.crew import Crew
from benchmarks.shaped.lan import Lan, run
from benchmarks.shaped.outcome import METHODS, Method, Repeat, chosen_delay, header, rows, told
from benchmarks.shaped.own_namespaces import private_places
from raylab.algorithms.averaging import AVERAGING_METHODS

__all__ = ["measure_all"]

_PORT = 29500
_AVERAGES = 5
"""Timed for t_c in a repeat, after one that is not."""
Do = Callable[[Mapping[str, Any]], Sequence[Mapping[str, float]]]


def measure_all(options: argparse.Namespace) -> None:
    """Measure at every rate, print the tables and write the file."""
    lan = Lan(hosts=options.workers)
    private_places(dict(zip(lan.names, lan.addresses, strict=True)))
    run(lan.build())
    found = []
    with contextlib.ExitStack() as stack:
        crews: dict[str, Do] = {}
        places = [("own", sys.executable, "benchmarks.shaped.worker", _PORT)]
        if options.peers:
            module = "benchmarks.shaped.torchft_worker"
            places.append(("torchft", options.peers, module, _PORT + 10))
        for name, interpreter, module, port in places:
            crew = Crew(lan, interpreter, module, port=port, timeout_s=options.timeout)
            crews[name] = stack.enter_context(crew).do
        if options.ray:
            from benchmarks.shaped.ray_nodes import driver_on_nodes

            driver = driver_on_nodes(lan, timeout_s=options.timeout)
            crews["ray"] = stack.enter_context(driver).do
        for mbit_s in options.mbit_s:
            run(lan.shape(mbit_s))
            found.append(_measure(options, mbit_s, crews))
    if options.json is not None:
        options.json.write_text(json.dumps(_file(options, found), indent=2) + "\n")


def _measure(options: argparse.Namespace, mbit_s: float, crews: Mapping[str, Do]) -> dict[str, Any]:
    """Measure all methods at one rate, print the table and return it for the file."""
    load_before = os.getloadavg()[0]
    methods = [method for method in METHODS if method.crew in crews]
    delay = options.delay
    if delay is None:
        delay = chosen_delay(*_alone(options, crews["own"]), tau=options.tau)
    repeats: list[Repeat] = []
    for number in range(options.repeats):
        compute_s, average_s = _alone(options, crews["own"])
        alone = {"step_s": compute_s, "average_s": average_s}
        _say(f"{mbit_s:g} Mbit/s, repeat {number + 1}: no communication", alone)
        steps_s: dict[str, float] = {}
        blocked_s: dict[str, float] = {}
        for method in methods:
            answer = _means(crews[method.crew](_task(options, method, delay)))
            steps_s[method.title] = answer["step_s"]
            _say(f"{mbit_s:g} Mbit/s, repeat {number + 1}: {method.title}", answer)
            if "blocked_s" in answer:
                blocked_s[method.title] = answer["blocked_s"]
        repeats.append(
            Repeat(compute_s=compute_s, average_s=average_s, steps_s=steps_s, blocked_s=blocked_s)
        )
    table = rows(repeats, methods, tau=options.tau, delay=delay)
    load_after = os.getloadavg()[0]
    compute_ms, average_ms = (
        1e3 * statistics.median(getattr(repeat, name) for repeat in repeats)
        for name in ("compute_s", "average_s")
    )
    print(
        f"\n{options.workers} workers, {options.megabytes:g} MB, {mbit_s:g} Mbit/s a link: "
        f"t_p {compute_ms:.1f} ms (modelled: a nap of {options.step_ms:g} ms), "
        f"t_c {average_ms:.1f} ms; tau = {options.tau}, d = {delay}, xi = {options.xi:g}; "
        f"{options.repeats} repeats; load average {load_before:.1f} before, {load_after:.1f} "
        f"after, {os.cpu_count()} cores\n"
    )
    print(header())
    for row in table:
        print(told(row), flush=True)
    return {
        "mbit_s": mbit_s,
        "tau": options.tau,
        "delay": delay,
        "xi": options.xi,
        "load_average": [load_before, load_after],
        "repeats": [asdict(repeat) for repeat in repeats],
        "rows": [row.json() for row in table],
    }


def _alone(options: argparse.Namespace, do: Do) -> tuple[float, float]:
    """Return t_p and t_c in seconds."""
    common = {"megabytes": options.megabytes, "compute_s": options.step_ms / 1e3}
    steps = options.tau * options.periods
    alone = do({**common, "way": "alone", "steps": steps, "warm_up": options.tau})
    average = do({**common, "way": "average", "steps": _AVERAGES, "warm_up": 1})
    return _means(alone)["step_s"], _means(average)["step_s"]


def _task(options: argparse.Namespace, method: Method, delay: int) -> dict[str, Any]:
    """Return what workers are told."""
    row = AVERAGING_METHODS[method.law]
    dasgd, minibatch = method.law == "dasgd", method.law == "minibatch_sgd"
    return {
        "way": method.way,
        "method": method.law,
        "buckets": method.buckets,
        "megabytes": options.megabytes,
        "compute_s": options.step_ms / 1e3,
        "steps": options.tau * options.periods,
        "warm_up": 2 * options.tau,
        "tau": options.tau,
        "delay": delay,
        "xi": options.xi,
        "rule": {
            "averages": row.averages,
            "tau": 1 if minibatch else options.tau,
            "delay": delay if dasgd else 0,
            "xi": options.xi if dasgd else 0.0,
        },
    }


def _say(what: str, answer: Mapping[str, float]) -> None:
    """Tell on standard error what has been measured."""
    times = ", ".join(f"{name[:-2]} {1e3 * seconds:.1f} ms" for name, seconds in answer.items())
    print(f"{what}: {times}", file=sys.stderr)


def _means(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means over the workers."""
    return {name: statistics.mean(each[name] for each in answers) for name in answers[0]}


def _file(options: argparse.Namespace, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "workers": options.workers,
        "megabytes": options.megabytes,
        "step_ms": options.step_ms,
        "compute": "modelled: a nap",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "rates": list(found),
    }
