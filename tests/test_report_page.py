"""The page of an evaluation in a real browser: it renders, sounds play, tables sort, and no name does harm."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from separate.cli import evaluate
from separate.evaluation import report
from separate.evaluation.results import Results, summarise
from tests.evaluations import METRICS, recording, results

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = (
    "<script>window.harmed = 1</script>",
    "</script><img src=x onerror='window.harmed = 1'>",
    '"><svg onload="window.harmed = 1">',
    "</style><b>bold</b> &amp; $x^2$ \\",
    "http://example.com/a?b=c#d",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; without one the tests are skipped, and fail in CI."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        reason = "no Chromium is installed; apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]  # a container's root has no sandbox
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()


@dataclass
class Opened:
    """A page in the browser, its messages and the addresses that it asked for."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def all(self, selector: str, expression: str) -> list[Any]:
        """An expression in JavaScript of each element `e` that a selector finds."""
        return self.page.evaluate(f"Array.from(document.querySelectorAll({selector!r}), e => {expression})")

    def column(self, number: int) -> list[str]:
        """The text of a column of the table of scores."""
        return self.page.evaluate(
            f"Array.from(document.querySelector('table').tBodies[0].rows, e => e.cells[{number}].textContent)"
        )

    def until(self, condition: str) -> None:
        """Wait for a condition in JavaScript.  The page's policy forbids `eval`, and so `wait_for_function`."""
        deadline = time.monotonic() + 20
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.page.wait_for_timeout(20)

    def play(self, number: int, seconds: float) -> None:
        """Play a sound until that time."""
        self.page.evaluate(f"document.querySelectorAll('audio')[{number}].play()")
        self.until(f"document.querySelectorAll('audio')[{number}].currentTime >= {seconds}")

    def sort(self, name: str, place: int = 0) -> str:
        """Press a head of the table of scores; -> its direction."""
        head = self.page.locator("table").first.locator("th", has=self.page.get_by_role("button", name=name)).nth(place)
        head.get_by_role("button").click()
        return head.get_attribute("aria-sort") or ""


Open = Callable[..., Opened]


def html(found: Results, heard: int) -> str:
    """The page of these results, with some of the recordings to hear."""
    recordings = [recording(track, sources=found.sources) for track in report.tracks_to_hear(found)[:heard]]
    return report.page(found, summarise(found), recordings)


@pytest.fixture(scope="module")
def usual() -> str:
    """A page with two recordings, for all tests."""
    return html(results(), heard=2)


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """opened(content, **options of a page) -> that content as report.html in the browser."""
    pages = []

    def open_page(content: str, **options: Any) -> Opened:
        path = tmp_path / "report.html"
        path.write_text(content, "utf-8")
        shown = Opened(browser.new_page(**options))
        pages.append(shown.page)
        shown.page.on("console", lambda message: shown.messages.append(message.text))
        shown.page.on("pageerror", lambda error: shown.messages.append(str(error)))
        shown.page.on("dialog", lambda dialog: (shown.messages.append(dialog.message), dialog.dismiss()))
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.goto(path.as_uri())
        return shown

    yield open_page
    for page in pages:
        page.close()


def numbers(cells: list[str]) -> list[float]:
    """The numbers in cells; infinite for those without a score, as they come last."""
    return [float(cell.replace("−", "-").replace("∞", "inf")) for cell in cells if cell != "–"]


def test_the_page_renders_without_an_error_and_asks_for_nothing(opened, usual):
    shown = opened(usual)
    assert shown.messages == []
    asked = [url for url in shown.requests if not url.startswith("data:")]
    assert [url.rpartition("/")[2] for url in asked] == ["report.html"]
    assert shown.all("script[src], link[rel=stylesheet], a[href], iframe", "e.outerHTML") == []
    assert "default-src 'none'" in shown.page.locator("meta[http-equiv]").get_attribute("content")


def test_the_report_of_a_run_opens(opened, trained, call):
    code, _, err = call(evaluate, "run=runs/tiny", "device=cpu", "workers=0", "out=report", cwd=trained)
    assert code == 0, err
    shown = opened((trained / "report" / "report.html").read_text("utf-8"))
    assert "Evaluation: test of toy" in shown.page.inner_text("body") and shown.messages == []
    assert min(shown.all("img", "e.naturalWidth")) > 300
    shown.play(0, 0.05)


def test_every_picture_is_drawn(opened, usual):
    shown = opened(usual)
    widths = shown.all("img", "e.naturalWidth")
    assert len(widths) == 2 * (1 + 2 * 2)  # of two tracks: the mixture, and reference and estimate of two sources
    assert min(widths) > 300
    assert len(shown.all("svg", "e")) == 3 * 2  # a panel for each metric and source
    counts = shown.all("svg", "e.querySelectorAll('circle, .beyond').length")
    assert set(counts) == {3 * 6, 3 * 5}  # three methods, six tracks, of which one has a silent source


def test_every_sound_loads_and_plays(opened, usual):
    shown = opened(usual)
    shown.until("Array.from(document.querySelectorAll('audio')).every(e => e.readyState >= 1)")
    durations = shown.all("audio", "e.duration")
    assert len(durations) == 2 * (1 + 2 * 2)
    assert durations == pytest.approx([1.0] * 10, abs=0.15)  # MP3 has whole frames
    for number in (0, 9):
        shown.play(number, 0.05)
    assert shown.messages == []


def test_a_second_sound_of_a_track_goes_on_where_the_first_was(opened, usual):
    shown = opened(usual)
    shown.play(0, 0.2)
    shown.page.evaluate("document.querySelectorAll('audio')[1].play()")
    shown.until("document.querySelectorAll('audio')[0].paused")
    assert shown.page.evaluate("document.querySelectorAll('audio')[1].currentTime") >= 0.2


def test_a_column_of_numbers_sorts_as_numbers_in_both_directions(opened, usual):
    shown = opened(usual)
    before = numbers(shown.column(2))
    assert before != sorted(before) and len(str(min(before))) != len(str(max(before)))
    assert shown.sort("mean") == "descending"  # the best first
    assert numbers(shown.column(2)) == sorted(before, reverse=True)
    assert shown.sort("mean") == "ascending"
    assert numbers(shown.column(2)) == sorted(before)
    assert shown.sort("mean", 1) == "ascending"  # of a distance, the least is the best
    assert numbers(shown.column(4)) == sorted(numbers(shown.column(4)))
    assert shown.all("th[aria-sort]", "e.dataset.column") == ["4"]


def test_a_column_of_names_sorts_by_keyboard(opened, usual):
    shown = opened(usual)
    button = shown.page.locator("table").first.get_by_role("button", name="source")
    button.focus()
    shown.page.keyboard.press("Enter")
    assert shown.column(1) == sorted(shown.column(1))
    shown.page.keyboard.press("Space")
    assert shown.column(1) == sorted(shown.column(1), reverse=True)


def test_a_row_without_a_score_stays_last_and_infinity_is_a_number(opened):
    found = results()
    worst = [replace(row, score=-torch.inf) if row.source == "drums" else row for row in found.rows]
    absent = [replace(row, score=torch.nan) if row.method == "tPSA mask" else row for row in worst]
    shown = opened(html(replace(found, rows=absent), heard=0))
    for direction in ("descending", "ascending"):
        assert shown.sort("mean") == direction
        assert shown.column(2)[-3:] == ["–"] * 3
        cells = numbers(shown.column(2))
        assert cells == sorted(cells, reverse=direction == "descending") and cells.count(-torch.inf) == 4
    assert shown.messages == []


def test_hostile_names_are_shown_as_text(opened):
    metrics = {"si_sdr": replace(METRICS["si_sdr"], label=HOSTILE[0], unit=HOSTILE[2])}
    found = results(tracks=HOSTILE, sources=HOSTILE[:2], metrics=metrics)
    found.about.update({"data": HOSTILE[1], "config": {HOSTILE[0]: HOSTILE[3]}, HOSTILE[2]: HOSTILE[3]})
    shown = opened(html(found, heard=1))
    shown.page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    text = shown.page.inner_text("body")
    for name in HOSTILE:
        assert name in text
    assert shown.messages == []
    assert shown.page.evaluate("window.harmed") is None
    assert len(shown.all("script", "e")) == len(shown.all("style", "e")) == 1
    assert shown.all("body b, body img:not([src^='data:'])", "e.outerHTML") == []
    asked = [url for url in shown.requests if not url.startswith("data:")]
    assert len(asked) == 1


def test_a_narrow_screen_scrolls_only_the_tables(opened, usual):
    shown = opened(usual, viewport={"width": 360, "height": 800})
    assert shown.page.evaluate("document.documentElement.scrollWidth") == 360
    assert shown.page.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.scroll'))")


def test_the_page_is_dark_where_the_reader_wants_it_and_prints_all_of_it(opened, usual):
    light, dark = opened(usual, color_scheme="light"), opened(usual, color_scheme="dark")
    grounds = [
        sum(map(int, re.findall(r"\d+", shown.page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))
        for shown in (light, dark)
    ]
    assert grounds[0] > 3 * 240 and grounds[1] < 3 * 40
    assert not all(light.all("details", "e.open"))
    light.page.pdf()
    assert all(light.all("details", "e.open"))
