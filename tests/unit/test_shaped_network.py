"""What the benchmark on a shaped network does before it has one, and what it makes of its times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.shaped.lan import Lan
from benchmarks.shaped.outcome import METHODS, Repeat, chosen_delay, header, rows, told
from benchmarks.shaped_network import main

pytestmark = pytest.mark.unit

TITLES = {
    method.law: method for method in METHODS if method.crew == "own" and method.way == "raylab"
}


def _tools(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).write_text("#!/bin/sh\nexit 9\n")
        (folder / name).chmod(0o755)
    return str(folder)


def _refused(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--repeats", "1"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    return line


def test_without_iproute2_it_says_so_in_one_line_and_stops(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", _tools(tmp_path, "unshare", "setpriv"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "ip, tc cannot be found" in _refused(capsys)


def test_without_root_it_says_so_in_one_line_and_stops(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", _tools(tmp_path, "ip", "tc", "unshare", "setpriv"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in _refused(capsys)


def test_its_exit_code_is_that_of_the_program_in_the_namespaces(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", _tools(tmp_path, "ip", "tc", "unshare", "setpriv"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main([]) == 9


def test_every_host_has_a_name_an_address_and_a_port_of_the_switch_of_its_own():
    lan = Lan(hosts=3)
    assert lan.addresses == ["10.79.0.1", "10.79.0.2", "10.79.0.3"]
    commands = [" ".join(command) for command in lan.build()]
    for host in range(3):
        assert f"ip netns add host{host}" in commands
        assert f"ip link add port{host} type veth peer name eth0 netns host{host}" in commands
        assert f"ip link set port{host} master switch" in commands
        assert f"ip -n host{host} addr add 10.79.0.{host + 1}/24 dev eth0" in commands


def test_a_link_is_shaped_both_ways_and_may_be_shaped_anew():
    commands = [" ".join(command) for command in Lan(hosts=2).shape(0.5)]
    tbf = "root tbf rate 500000bit burst 128kb latency 50ms"
    assert commands == [
        f"tc qdisc replace dev port0 {tbf}",
        f"tc -n host0 qdisc replace dev eth0 {tbf}",
        f"tc qdisc replace dev port1 {tbf}",
        f"tc -n host1 qdisc replace dev eth0 {tbf}",
    ]


def test_a_fast_link_has_a_bucket_for_what_goes_between_two_ticks():
    burst = Lan(hosts=1).shape(10_000)[0]
    assert "1221kb" in burst  # 1.25 MB a millisecond


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_is_a_number_above_zero(rate):
    with pytest.raises(ValueError, match="mbit_s > 0"):
        Lan(hosts=1).shape(rate)


def test_hosts_fit_into_the_network():
    for hosts in (0, 251):
        with pytest.raises(ValueError, match="1 <= hosts <= 250"):
            Lan(hosts=hosts)


def _repeat(average_s: float, **steps_s: float) -> Repeat:
    return Repeat(
        compute_s=0.1,
        average_s=average_s,
        steps_s={TITLES[law].title: seconds for law, seconds in steps_s.items()},
        blocked_s={TITLES["dasgd"].title: 0.001},
    )


def test_predictions_are_those_of_equations_4_to_6():
    repeat = _repeat(0.08, minibatch_sgd=0.18, local_sgd=0.12, dasgd=0.1)
    found = {row.law: row for row in rows([repeat], list(TITLES.values()), tau=4, delay=1)}
    assert found["minibatch_sgd"].predicted_s == pytest.approx(0.1 + 0.08)
    assert found["local_sgd"].predicted_s == pytest.approx(0.1 + 0.08 / 4)
    assert found["dasgd"].predicted_s == pytest.approx(0.1)
    assert found["minibatch_sgd"].predicted_share == pytest.approx(0.1 / 0.18)
    assert found["local_sgd"].share == pytest.approx(0.1 / 0.12)
    assert all(row.holds and row.target for row in found.values())


def test_gradients_in_buckets_overlap_the_backward_but_for_the_last_or_the_first_of_them():
    [method] = [each for each in METHODS if each.buckets == 8]
    short, long = (_repeat(average_s).plan(4, 1) for average_s in (0.02, 0.2))
    forward_s, backward_s = 0.1 / 3, 0.2 / 3
    assert method.predicted_s(short) == pytest.approx(forward_s + backward_s + 0.02 / 8)
    assert method.predicted_s(long) == pytest.approx(forward_s + backward_s / 8 + 0.2)


def test_a_repeat_is_compared_with_its_own_times_and_the_median_is_told():
    repeats = [
        _repeat(average_s, minibatch_sgd=step_s, local_sgd=1.0, dasgd=1.0)
        for average_s, step_s in ((0.1, 0.2), (0.2, 0.36), (0.3, 0.48))
    ]
    row = rows(repeats, [TITLES["minibatch_sgd"]], tau=4, delay=1)[0]
    assert row.off == pytest.approx(1.2)
    assert row.off_range == pytest.approx((1.0, 1.2))
    assert row.measured_s == pytest.approx(0.36)
    assert not row.holds


def test_dasgd_is_held_to_its_share_only_where_the_average_is_hidden():
    methods = [TITLES["dasgd"]]
    slow = {"minibatch_sgd": 1.0, "local_sgd": 1.0, "dasgd": 0.1 / 0.96}
    [hidden] = rows([_repeat(0.1, **slow)], methods, tau=4, delay=1)
    [late] = rows([_repeat(0.14, **slow)], methods, tau=4, delay=1)
    assert not hidden.holds
    assert late.target == ""
    assert late.predicted_s == pytest.approx(0.1 + 0.04 / 4)


def test_the_delay_is_the_planners_as_far_as_tau_allows():
    assert chosen_delay(0.1, 0.13, tau=4) == 2
    assert chosen_delay(0.1, 0.93, tau=4) == 3


def test_a_row_has_a_cell_for_each_column():
    repeat = _repeat(0.08, minibatch_sgd=0.18, local_sgd=0.12, dasgd=0.11)
    [row] = rows([repeat], [TITLES["dasgd"]], tau=4, delay=1)
    names, rule = header().splitlines()
    assert told(row).count("|") == names.count("|") == rule.count("|")
    assert "0.909" in told(row)
    assert "MISSED" in told(row)
