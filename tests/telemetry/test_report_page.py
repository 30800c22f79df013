"""The report's page in a real browser: Debian's chromium, steered by playwright over its DevTools protocol."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from tests.telemetry.runs import MadeRun, eventful_run

from raymb.cli import main
from raymb.telemetry.run_record import read_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium")
# Without a sandbox, because tests may run as root; without what a browser does by itself on the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shape_only_model_dir: Path) -> MadeRun:
    run = eventful_run(
        tmp_path_factory.mktemp("runs"), shape_only_model_dir, "a-name-as-long-as-names-of-runs-get-tp2-pp2"
    )
    assert main(["report", str(run.path)]) == 0
    return run


class Opened:
    """A page, what it asked for, and what the browser's console said."""

    def __init__(self, browser: Any, file: Path, **settings: Any):
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.goto(file.as_uri())

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    pages: list[Opened] = []

    def open_page(file: Path, width: int = DESK, **settings: Any) -> Opened:
        pages.append(Opened(browser, file, viewport={"width": width, "height": 800}, **settings))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_opens_without_an_error_or_a_request_and_fits(run: MadeRun, opened: Any, scheme: str, width: int) -> None:
    file = run.path / "report.html"
    seen = opened(file, width, color_scheme=scheme)
    for by in ("seconds", "tokens", "step"):
        seen.page.check(f"input[value={by}]")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        charts = seen.page.locator(".chart:visible")
        assert charts.count() == {"step": 5, "tokens": 5, "seconds": 6}[by]
        for index in range(charts.count()):
            box = charts.nth(index).locator("svg").bounding_box()
            assert box["width"] > 200 and box["height"] > 150
    for details in seen.page.locator("details").all():
        details.locator("summary").first.click()
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.requests == [file.as_uri()] and seen.said == []
    assert len(seen.page.screenshot(full_page=True)) > 20_000


def test_light_and_dark_can_be_read(run: MadeRun, opened: Any) -> None:
    """By WCAG's contrast of text and of curves to the background: at least 4.5 and 3."""
    for scheme in ("light", "dark"):
        seen = opened(run.path / "report.html", color_scheme=scheme)
        paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (luminance(paper) > 0.5) == (scheme == "light")
        for selector, least in (
            ("td", 4.5),
            ("th[scope=row]", 4.5),
            (".note", 4.5),
            (".plot .x", 4.5),
            (".state", 4.5),
        ):
            color = seen.page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color")
            assert contrast(color, paper) >= least, (scheme, selector)
        for selector in (".train.run0", ".validation.run0", ".plot .failure", ".plot .again"):
            color = seen.page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color")
            assert contrast(color, paper) >= 3, (scheme, selector)


def luminance(color: str) -> float:
    """WCAG 2's relative luminance of rgb(r, g, b)."""
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_values_under_the_pointer_are_those_of_the_run(run: MadeRun, opened: Any) -> None:
    seen = opened(run.path / "report.html")
    plot = seen.page.locator(".plot:visible").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    records = read_run(run.path)
    validation = {one["step"]: one["loss"] for one in records.of("validation")}
    for step in (1, 10, 40):
        plot.hover(position={"x": min(box["width"] - 2, 2 + (box["width"] - 2) * (step - 1) / 39), "y": 60}, force=True)
        first, *rows = plot.locator(".tip").inner_text().splitlines()
        shown = dict(row.rsplit(None, 1) for row in rows)
        assert first == f"step {step}"
        assert float(shown["train"]) == pytest.approx(run.losses[step], rel=2e-3)
        if step in validation:
            assert float(shown["validation"]) == pytest.approx(validation[step], rel=2e-3)
    seen.page.mouse.move(0, 0)
    assert not plot.locator(".tip").is_visible() and seen.said == []


def test_the_steps_behind_the_averages_can_be_hidden(run: MadeRun, opened: Any) -> None:
    seen = opened(run.path / "report.html")
    seen.page.check("input[value=tokens]")
    plot = seen.page.locator(".plot:visible").first
    raw = plot.locator("path.raw")
    plot.scroll_into_view_if_needed()
    drawn = [shown.split("  ")[0] for shown in _tip(plot, 0.5)[1:]]
    assert raw.is_visible() and drawn == ["train", "train average"]
    seen.page.uncheck("input[name=raw]")
    assert not raw.is_visible() and not seen.page.locator("li.raw:visible").count()
    first, *rows = _tip(plot, 1.0)
    last = pandas.Series(list(run.losses.values())).ewm(halflife=3, ignore_na=True).mean().iloc[-1]
    assert first == "3,980 tokens" and [row.split("  ")[0] for row in rows] == ["train average", "validation"]
    assert float(rows[0].split("  ")[1]) == pytest.approx(last, rel=1e-3) and seen.said == []


def _tip(plot: Any, share: float) -> list[str]:
    """What is shown with the pointer at this share of the plot's width."""
    box = plot.bounding_box()
    plot.hover(position={"x": 1 + (box["width"] - 4) * share, "y": 60}, force=True)
    return plot.locator(".tip").inner_text().splitlines()


def test_failures_and_resumes_are_seen_where_they_happened(run: MadeRun, opened: Any) -> None:
    seen = opened(run.path / "report.html")
    seen.page.check("input[value=seconds]")
    plot = seen.page.locator(".charts.seconds .plot").last
    box = plot.bounding_box()
    begin, end = map(float, plot.get_attribute("data-x").split())
    flags = plot.locator(".flag").all()
    assert [flag.get_attribute("title").partition(":")[0] for flag in flags] == [
        "failure 1 after step 25",
        "training again from step 20",
        "training again from step 30",
    ]
    for flag, seconds in zip(flags, (35, 45, 65), strict=True):
        at = flag.bounding_box()
        expected = box["x"] + box["width"] * (seconds - begin) / (end - begin)
        assert at["x"] + at["width"] / 2 == pytest.approx(expected, abs=2) and at["height"] > 150


def test_a_text_that_wants_to_be_code_stays_text(run: MadeRun, opened: Any) -> None:
    seen = opened(run.path / "report.html")
    assert seen.page.evaluate("window.hacked") is None
    assert "<script>window.hacked = true</script>" in seen.page.locator(".answers").inner_text()
    # Should a text ever get through unescaped, the page's policy still runs no script but its own and sends nothing.
    blocked: list[str] = []
    seen.page.on("requestfailed", lambda request: blocked.append(request.failure))
    seen.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"x.png\" onerror=\"hacked = 1\">')")
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("window.hacked") is None and blocked == ["csp"]


def test_it_can_be_read_without_javascript(run: MadeRun, opened: Any) -> None:
    seen = opened(run.path / "report.html", java_script_enabled=False)
    assert seen.page.locator(".charts.step svg").first.is_visible()
    assert not seen.page.locator(".charts.seconds svg").first.is_visible()
    seen.page.get_by_label("time").check()
    assert seen.page.locator(".charts.seconds svg").first.is_visible()


def test_two_runs_on_a_phone(run: MadeRun, shape_only_model_dir: Path, opened: Any) -> None:
    other = eventful_run(run.path.parent, shape_only_model_dir, "other", learning_rate="3e-4")
    file = run.path.parent / "both.html"
    assert main(["report", str(run.path), "--compare", str(other.path), "--output", str(file)]) == 0
    seen = opened(file, PHONE)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= PHONE
    colors = {
        seen.page.evaluate(f"getComputedStyle(document.querySelector('.plot .{style}')).stroke")
        for style in ("train.run0", "train.run1", "validation.run0", "validation.run1")
    }
    assert len(colors) == 4 and seen.said == [] and seen.requests == [file.as_uri()]
