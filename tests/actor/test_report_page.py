"""The page in a browser: it draws, hides and zooms, and asks the network for nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, sync_playwright

from raylab.report.page import report_page
from raylab.report.tuning_page import tuning_page
from tests.report_runs import made_up_run
from tests.tuning_runs import made_up_search

pytestmark = pytest.mark.actor

PATIENCE_MS = 120_000
OWN = ("file:", "data:", "blob:")
FOREIGN = "<img src=x onerror=alert(1)> & a name that is long enough to need a second line"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(f"none of {', '.join(names)} is there: apt-get install chromium")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=sandbox, timeout=PATIENCE_MS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [made_up_run("one"), made_up_run(FOREIGN, stages=3, method="ddg", lr=0.1)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(runs), encoding="utf-8")
    return path


def until(page: Page, condition: str, given: object = None) -> None:
    """Return when the JavaScript function ``condition`` holds, looked at once a frame.

    ``Page.wait_for_function`` evaluates its text anew at every look, which the page's own
    Content-Security-Policy refuses from the second look on.
    """
    page.evaluate(
        f"""async ([given, limit]) => {{
            const holds = {condition}, ends = performance.now() + limit;
            while (!holds(given)) {{
                if (performance.now() > ends) throw new Error(`never so: ${{holds}}`);
                await new Promise(requestAnimationFrame);
            }}
        }}""",
        [given, PATIENCE_MS],
    )


class Visit:
    """A page that is open, and what went wrong on it."""

    def __init__(self, browser: Browser, report: Path, width: int, scheme: str) -> None:
        size = ViewportSize(width=width, height=900)
        self.context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        self.context.set_default_timeout(PATIENCE_MS)
        self.wrong: list[str] = []
        self.context.route("**/*", self._pass_own)
        self.context.set_offline(True)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.goto(report.as_uri())
        until(
            self.page,
            "() => document.querySelector('.plot:not(:has(.main-svg))') === null",
        )

    def _pass_own(self, route: Route) -> None:
        if route.request.url.startswith(OWN):
            route.continue_()
        else:
            self.wrong.append(f"asked for {route.request.url}")
            route.abort()

    def _heard(self, message: object) -> None:
        if getattr(message, "type", "") in ("error", "warning"):
            self.wrong.append(getattr(message, "text", ""))

    def visible(self, plot: str) -> list[bool]:
        """Return which traces of a plot are shown."""
        shown: list[bool] = self.page.evaluate(
            "id => document.getElementById(id).data.map(t => t.visible !== false)", f"plot-{plot}"
        )
        return shown

    def seen(self, plot: str) -> list[float]:
        """Return the range of x that a plot shows."""
        ends: list[float] = self.page.evaluate(
            "id => document.getElementById(id).layout.xaxis.range", f"plot-{plot}"
        )
        return ends


@pytest.fixture(scope="module")
def wide(browser: Browser, report: Path) -> Iterator[Visit]:
    visit = Visit(browser, report, 1400, "light")
    yield visit
    visit.context.close()


@pytest.fixture
def visit(wide: Visit) -> Iterator[Visit]:
    """Return the page that the tests share: each leaves it as it was."""
    yield wide
    assert wide.wrong == []


def test_every_figure_is_drawn(visit):
    drawn = visit.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.plot')].map(p => [
            p.id, p.querySelectorAll('.scatterlayer .trace, .barlayer .trace').length]))"""
    )
    assert drawn["plot-loss-by-epoch"] == 4  # training and test of two runs
    assert drawn["plot-timeline-one"] == 5
    assert drawn["plot-throughput"] == 4
    assert len(drawn) == 12
    assert all(drawn.values()), drawn
    bars = visit.page.locator("#plot-timeline-one .bars .point path")
    assert bars.count() > 20
    assert visit.page.locator("main img").count() == 0


def test_a_run_of_the_legend_is_hidden_everywhere_and_shown_again(visit):
    chip = visit.page.get_by_role("button", name="one", exact=True)
    assert chip.get_attribute("aria-pressed") == "true"
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    for plot in ("loss-by-epoch", "accuracy-by-time", "throughput"):
        assert visit.visible(plot) == [False, True, False, True]
    assert not visit.page.locator("#plot-timeline-one").is_visible()
    assert visit.page.locator("main article[data-run='0']").is_hidden()
    chip.click()
    assert all(visit.visible("loss-by-epoch"))
    assert visit.page.locator("#plot-timeline-one").is_visible()


def test_the_timeline_zooms_by_its_buttons_and_by_dragging(visit):
    first, every = (
        visit.page.locator("figure", has=visit.page.locator("#plot-timeline-one"))
        .get_by_role("button")
        .filter(has_text=text)
        for text in ("First 12 batches", "All 20 batches")
    )
    every.click()
    whole = visit.seen("timeline-one")
    first.click()
    assert visit.seen("timeline-one")[1] < whole[1]
    every.click()
    area = visit.page.locator("#plot-timeline-one .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    visit.page.mouse.move(box["x"] + 0.4 * box["width"], y)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=5)
    visit.page.mouse.up()
    until(
        visit.page,
        "most => { const [a, b] = document.getElementById('plot-timeline-one').layout.xaxis.range;"
        " return b - a < most; }",
        0.5 * (whole[1] - whole[0]),
    )


def test_only_the_keys_that_differ_can_be_shown(visit):
    same = visit.page.locator("#config tr.same").first
    assert same.is_visible()
    visit.page.get_by_label("Only what differs").check()
    assert same.is_hidden()
    assert visit.page.locator("#config tr.different").first.is_visible()
    visit.page.get_by_label("Only what differs").uncheck()


def too_wide(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    wider: int = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return wider


def test_dark_and_light_have_colours_of_their_own_at_once(visit):
    read = """() => {
        const plot = document.getElementById('plot-loss-by-epoch');
        return [getComputedStyle(document.body).backgroundColor, plot.layout.font.color,
                plot.data[0].line.color];
    }"""
    light = visit.page.evaluate(read)
    assert too_wide(visit.page) <= 0
    visit.page.emulate_media(color_scheme="dark")
    until(
        visit.page,
        "old => document.getElementById('plot-loss-by-epoch').layout.font.color !== old",
        light[1],
    )
    assert all(a != b for a, b in zip(light, visit.page.evaluate(read), strict=True))


def test_a_phone_in_the_dark_sees_all_of_it_without_scrolling_sideways(browser, report):
    visit = Visit(browser, report, 390, "dark")
    assert too_wide(visit.page) <= 0
    ends = visit.page.evaluate(
        "[...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().right)"
    )
    assert max(ends) <= 390
    visit.context.close()
    assert visit.wrong == []


def test_the_page_of_a_search_draws_sorts_copies_and_fits_a_phone(browser, tmp_path):
    report = tmp_path / "report.html"
    report.write_text(tuning_page(made_up_search(FOREIGN)), encoding="utf-8")
    visit = Visit(browser, report, 390, "dark")
    page = visit.page
    drawn = page.evaluate(
        """() => [...document.querySelectorAll('.plot')].map(p =>
            p.querySelectorAll('.scatterlayer .trace, .barlayer .trace').length)"""
    )
    assert len(drawn) == 9
    assert all(drawn), drawn
    assert too_wide(page) <= 0

    def column(index: int) -> list[str]:
        cells: list[str] = page.evaluate(
            "k => [...document.querySelectorAll('#trial-table tbody tr')]"
            ".map(row => row.cells[k].textContent)",
            index,
        )
        return cells

    head = page.get_by_role("button", name="test_loss")
    head.click()
    up = column(2)
    assert up[0] == "0.1"
    assert up[-1] == "—"  # it failed, and has none
    assert [float(each) for each in up[:-1]] == sorted(float(each) for each in up[:-1])
    head.click()
    assert column(2) == [*reversed(up[:-1]), up[-1]]
    page.get_by_role("button", name="momentum").click()
    assert column(6)[-7:] == ["—"] * 7
    page.evaluate(  # the button says so for two seconds only
        """() => {
            const button = document.querySelector('[data-copy]');
            new MutationObserver(() => { window.copied ||= button.textContent === 'Copied'; })
                .observe(button, {childList: true});
        }"""
    )
    page.get_by_role("button", name="Copy").first.click()
    until(page, "() => window.copied")
    assert page.evaluate("String(getSelection())").startswith("# trial 8")
    visit.context.close()
    assert visit.wrong == []
