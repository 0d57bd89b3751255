"""The programs under scripts/ as a user calls them."""

import subprocess
import sys
from pathlib import Path

import soundfile

from tests.conftest import tone, write

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True)


def test_fsdd_is_arranged_as_pools_and_a_second_call_goes_on(tmp_path):
    for speaker in ("george", "lucas"):
        for take in (0, 4, 7, 12, 15, 49):
            write(tmp_path / "recordings" / f"3_{speaker}_{take}.wav", tone(200, 0.1))
    write(tmp_path / "recordings" / "notes.wav", tone(200, 0.1))
    for _ in range(2):
        done = run("prepare_fsdd.py", str(tmp_path / "recordings"), str(tmp_path / "fsdd"))
        assert done.returncode == 0, done.stderr
        assert "10 recordings of 2 speakers" in done.stdout
        (tmp_path / "fsdd" / "tt" / "george" / "3_04.wav").unlink()
    found = {str(path.relative_to(tmp_path / "fsdd")) for path in (tmp_path / "fsdd").rglob("*.*")}
    takes = {"tt": ["00", "04"], "cv": ["12"], "tr": ["15", "49"]}
    wanted = {f"{split}/{s}/3_{take}.wav" for split, ts in takes.items() for take in ts for s in ("george", "lucas")}
    assert found == wanted - {"tt/george/3_04.wav"}
    done = run("prepare_fsdd.py", str(tmp_path), str(tmp_path / "fsdd"))
    assert done.returncode == 1
    assert "holds no files named DIGIT_SPEAKER_TAKE.wav" in done.stderr


def test_the_toy_song_is_written_with_its_sources(tmp_path):
    done = run("write_toy.py", str(tmp_path / "toy"))
    assert done.returncode == 0, done.stderr
    names = ("voice", "chords", "drums")
    parts = [soundfile.read(tmp_path / "toy" / f"{name}.wav")[0] for name in names]
    mixture, rate = soundfile.read(tmp_path / "toy" / "mixture.wav")
    assert (rate, len(mixture)) == (8000, 64000)
    assert abs(sum(parts) - mixture).max() < 1e-6
