"""What scripts/draw-report runs: a run's report in a browser, its summary and first curves as a picture."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from raymb.telemetry.report import write_report

PICTURE = Path(__file__).parents[1] / "docs" / "report.png"
WIDTH = 1000


def draw(run: str) -> None:
    """From the summary's title to the end of the second row of charts."""
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        file = write_report([run], Path(directory, "report.html"))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        page.goto(file.as_uri())
        top = page.locator("#summary").bounding_box()
        end = page.locator(".charts.step .chart").nth(3).bounding_box()
        if top is None or end is None:
            raise SystemExit(f"{run} has too few curves for a picture")
        height = end["y"] + end["height"] - top["y"]
        page.screenshot(path=PICTURE, full_page=True, clip={"x": 0, "y": top["y"], "width": WIDTH, "height": height})
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: scripts/draw-report RUN")
    draw(sys.argv[1])
    print(PICTURE)
