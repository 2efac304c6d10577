"""The page of parameter-server runs: certificates, time to a level, speed-up."""

from __future__ import annotations

import math

import pytest

from raylab.report import RunRecord
from raylab.report.certificates import time_to
from raylab.report.html_tables import heads
from raylab.report.page import report_figures, report_page

pytestmark = pytest.mark.unit


def server_run(
    name: str = "run", *, method: str = "dis_dfsdca", workers: int = 4, rate: float = 1.0
):
    """A run whose gap falls by a factor of ten in `rate` seconds."""
    rows = [
        {
            "step": 10 * i,
            "epoch": 0.5 * i,
            "time_s": rate * i,
            "samples_seen": 500 * i,
            "samples_per_s": 500.0 / rate,
            "duality_gap": 10.0**-i,
            "gradient_norm": 10.0 ** (-i / 2),
            "relation": 0.0 if i == 1 else 1e-16,
            "staleness_counts": [1, 8, 1],
        }
        for i in range(1, 6)
    ]
    config = {"method": method, "workers": workers, "problem": "ridge", "data": "digits"}
    return RunRecord(name=name, config=config, rows=rows)


def figure(runs, name):
    (found,) = (each for each in report_figures(runs) if each.name == name)
    return found


def test_a_solver_has_its_certificates_by_epoch_and_time_on_logarithmic_axes():
    run = server_run()
    names = [each.name for each in report_figures([run])]
    for certificate in ("duality-gap", "gradient-norm", "relation"):
        for by in ("epoch", "time"):
            assert f"{certificate}-by-{by}" in names
            assert figure([run], f"{certificate}-by-{by}").plot.layout.yaxis.type == "log"
    by_epoch = figure([run], "duality-gap-by-epoch").plot.data[0]
    assert list(by_epoch.x) == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert list(by_epoch.y) == [10.0**-i for i in range(1, 6)]


def test_a_value_without_a_logarithm_is_left_out():
    relation = figure([server_run()], "relation-by-time").plot.data[0]
    assert list(relation.x) == [2.0, 3.0, 4.0, 5.0]


def test_the_time_to_a_level_is_interpolated_on_the_logarithm():
    run = server_run(rate=2.0)
    assert time_to(run, "duality_gap", 1e-3) == pytest.approx(6.0)
    assert time_to(run, "duality_gap", math.sqrt(1e-3 * 1e-4)) == pytest.approx(7.0)
    assert time_to(run, "duality_gap", 1.0) == 2.0
    assert time_to(run, "duality_gap", 1e-9) is None


def test_speed_up_is_the_time_to_what_all_reach_over_that_of_the_fewest_workers():
    runs = [
        server_run("one", workers=1, rate=8.0),
        server_run("two", workers=2, rate=4.0),
        server_run("four", workers=4, rate=4.0),
        server_run("other", method="cocoa_plus", workers=4),
    ]
    line, linear = figure(runs, "speed-up").plot.data
    assert line.name == "dis_dfsdca"
    assert list(line.x) == [1, 2, 4]
    assert list(line.y) == pytest.approx([1.0, 2.0, 2.0])
    assert linear.name == "linear"


def test_one_number_of_workers_has_no_speed_up():
    runs = [server_run("a"), server_run("b", method="cocoa_plus")]
    assert "speed-up" not in [each.name for each in report_figures(runs)]


def test_the_histogram_of_messages_stands_with_the_workers():
    histogram = figure([server_run()], "staleness-histogram")
    assert histogram.section == "Workers"
    assert list(histogram.plot.data[0].customdata) == [5, 40, 5]


def test_the_head_of_a_solver_names_workers_and_problem():
    head = heads([server_run()])
    assert "Dis-dfSDCA" in head
    assert "K = 4" in head
    assert "ridge on digits" in head
    assert "Accumulation" not in head
    assert "1.00e-05" in report_page([server_run()])


def test_a_figure_stands_once_in_the_table_of_results():
    table = (
        report_page([server_run()]).partition('aria-label="Results"')[2].partition("</table>")[0]
    )
    assert table.count(">duality gap<") == 1
    assert table.count(">gradient norm<") == 1
