"""What the page of an evaluation shows: the tracks to hear, their excerpts and sounds, and distributions."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from separate.evaluation import distributions, report
from separate.evaluation.excerpts import MP3_RATES, PEAK, Listening, excerpt, sound
from separate.evaluation.results import summarise
from tests.evaluations import METRICS, recording, results

RATE = 8000


def test_the_two_best_and_the_two_worst_tracks_are_heard():
    found = results()
    assert report.tracks_to_hear(found) == ["song 5", "song 4", "song 1", "song 0"]
    distance = replace(found, metrics={"lsd": METRICS["lsd"]})
    assert report.tracks_to_hear(distance) == ["song 5", "song 4", "song 1", "song 0"]  # the least distance first
    assert report.tracks_to_hear(results(tracks=["a", "b", "c"])) == ["c", "b", "a"]
    assert report.tracks_to_hear(results(methods=("estimates",)))[0] == "song 5"


def test_a_track_without_scores_is_neither_best_nor_worst():
    found = results()
    absent = [replace(row, score=math.nan) if row.track in ("song 0", "song 5") else row for row in found.rows]
    assert report.tracks_to_hear(replace(found, rows=absent)) == ["song 4", "song 3", "song 2", "song 1"]
    unknown = replace(found, rows=[replace(row, score=math.nan) for row in found.rows])
    assert report.tracks_to_hear(unknown) == ["song 0", "song 1", "song 2", "song 3"]


def burst(start: float, seconds: float, level: float) -> torch.Tensor:
    """40 s with noise in one place."""
    signal = torch.zeros(1, 40 * RATE)
    place = slice(round(start * RATE), round((start + seconds) * RATE))
    signal[:, place] = level * torch.randn(1, place.stop - place.start, generator=torch.Generator().manual_seed(0))
    return signal


def listening(**references: torch.Tensor) -> Listening:
    return Listening("x", RATE, sum(references.values(), torch.zeros(1, 40 * RATE)), references, {})


def test_an_excerpt_is_where_all_sources_are_heard():
    loud_alone, both = burst(2, 6, 0.5), burst(22, 6, 0.1)
    found = excerpt(listening(a=loud_alone + both, b=burst(22, 6, 0.1)))
    assert found.start <= 22 and found.start + 10 >= 28
    assert found.heard.mixture.shape == found.heard.references["a"].shape == (1, 10 * RATE)
    assert (
        excerpt(listening(a=loud_alone + both)).start + 10 >= 8 and excerpt(listening(a=loud_alone + both)).start <= 2
    )


def test_one_gain_keeps_the_relative_levels_and_brings_the_highest_peak_to_minus_1_db():
    whole = recording("x", seconds=2)
    whole = replace(whole, estimates={"vocals": 3 * whole.references["vocals"], "drums": whole.references["drums"]})
    found = excerpt(whole)
    peaks = [float(s.abs().max()) for s in (found.heard.mixture, *found.heard.estimates.values())]
    assert max(peaks) * found.gain == pytest.approx(PEAK, rel=1e-5)
    assert torch.equal(found.heard.estimates["vocals"], whole.estimates["vocals"])  # shorter than 10 s
    silent = Listening("x", RATE, torch.zeros(1, RATE), {"a": torch.zeros(1, RATE)}, {"a": torch.zeros(1, RATE)})
    assert excerpt(silent).gain == 1.0
    assert excerpt(listening(a=burst(1, 1, 1e-6))).gain == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("rate", "channels", "written"),
    [
        (8000, 1, (8000, 1)),
        (44100, 2, (44100, 2)),
        (10000, 1, (11025, 1)),
        (96000, 2, (48000, 2)),
        (16000, 6, (16000, 1)),
    ],
)
def test_a_sound_is_an_mp3_of_the_signal(rate, channels, written):
    time = torch.arange(2 * rate) / rate
    signal = 0.3 * torch.sin(2 * math.pi * 440 * time).repeat(channels, 1)
    decoded, found = soundfile.read(io.BytesIO(sound(signal, rate, 2.0)), always_2d=True)
    assert (found, decoded.shape[1]) == written and found in MP3_RATES
    middle = decoded[found // 2 : found // 2 + found, 0]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.6 / math.sqrt(2), rel=0.02)
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) == 440


def test_a_far_tail_is_drawn_as_triangles_beyond_the_axis():
    scores = {f"{n}": float(n) for n in range(99)}
    low, high = distributions.limits([{**scores, "bad": -1000.0}])
    assert -20 < low < 0 and 98 < high < 120
    drawn = distributions.panel({"model": {**scores, "bad": -1000.0}}, (low, high), "SI-SDR, dB", "dB", ["model"])
    assert drawn.count("<circle") == 99 and drawn.count('class="beyond"') == 1
    assert "<title>bad: −1000.00 dB</title>" in drawn and "<title>median: 48.50 dB</title>" in drawn
    wide = {"a": 0.0, "b": 1.0, "c": 2.0}
    assert distributions.limits([wide])[0] < 0 and distributions.limits([wide])[1] > 2  # few tracks: all on the axis
    for odd in ([], [{}], [{"a": 3.0}], [{"a": math.inf}]):
        low, high = distributions.limits(odd)
        assert low < high


def test_of_many_tracks_a_panel_shows_evenly_spaced_ranks_with_both_ends():
    scores = {f"{n}": float(n) for n in range(5000)}
    drawn = distributions.panel({"model": scores}, (-1, 5000), "x", "", ["model"])
    assert drawn.count("<circle") == distributions.MOST
    assert "<title>0: 0.00 </title>" in drawn and "<title>4999: 4999.00 </title>" in drawn
    places = sorted(float(x) for x in re.findall(r'cx="([\d.]+)"', drawn))
    assert np.ptp(np.diff(places)) < 0.3


def test_a_method_has_the_same_colour_in_all_panels():
    methods = ["model", "mixture as estimate", "IBM"]
    drawn = distributions.panel({"model": {"a": 1.0}, "IBM": {"a": 2.0}}, (0, 3), "x", "", methods)
    assert re.findall(r'<g class="(m\d)">', drawn) == ["m0", "m2"]


def test_the_page_states_aggregates_silent_references_config_and_versions():
    page = report.page(results(), summarise(results()), [])
    for text in ("median over tracks", "Silent references", "−30.00", "separate.models.OpenUnmix", "torch: 2.11.0"):
        assert text in page
    assert "<audio" not in page and "Best and worst tracks" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
