"""The programs under scripts/ as a user calls them."""

import json
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


def sweep_of(folder: Path, scores: dict[tuple[str, int], float]) -> Path:
    """A sweep that was trained and scored: the files of it that the table is made of."""
    for number, ((loss, seed), value) in enumerate(scores.items()):
        job = folder / str(number)
        for path, content in (
            (job / "checkpoints" / "best.ckpt", ""),
            (job / ".hydra" / "overrides.yaml", f"- loss={loss}\n- seed={seed}\n- experiment=targets\n"),
            (
                job / "eval" / "test" / "summary.json",
                json.dumps({"scores": {"model": {"all": {m: {"mean": value} for m in ("si_sdr", "si_sdri", "snr")}}}}),
            ),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return folder


def test_a_sweep_becomes_a_table_with_mean_and_deviation_over_the_seeds(tmp_path):
    values = {("tpsa", 0): 8.0, ("tpsa", 1): 10.0, ("msa", 0): 3.0, ("msa", 1): 3.0, ("si_sdr", 0): 11.0}
    sweep = sweep_of(tmp_path / "sweep", values)
    done = run("sweep_table.py", str(sweep), "--picture", str(tmp_path / "sweep.png"))
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    assert [row.split("|")[1].strip() for row in rows] == ["`loss=si_sdr`", "`loss=tpsa`", "`loss=msa`"]
    assert [row.split("|")[2].strip() for row in rows] == ["11.00 ± 0.00", "9.00 ± 1.41", "3.00 ± 0.00"]
    assert [row.split("|")[5].strip() for row in rows] == ["1", "2", "2"]
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    done = run("sweep_table.py", str(tmp_path))
    assert done.returncode == 1
    assert "holds no runs with a best checkpoint" in done.stderr


def test_the_benchmark_measures_a_case_beside_its_peer(tmp_path):
    out = tmp_path / "bench.json"
    done = run("bench.py", "pit", "--rounds", "5", "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["cases"]["pit"]
    assert set(found) == {"separate", "each pair by itself"}
    assert all(figures["seconds"] > 0 for figures in found.values())
    done = run("bench.py", "conv_tassnet", "--out", str(out))
    assert done.returncode == 2
    assert "cases are conv_tasnet" in done.stderr
