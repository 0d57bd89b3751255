"""Checkpoints: complete or absent, sufficient on their own, and without code that is not trusted."""

import os
from pathlib import Path

import pytest
import torch

import separate
from separate import checkpoint
from separate.errors import SeparateError, UsageError
from separate.parts import build_separator
from tests.tiny import config_of


def test_a_checkpoint_is_plain_and_sufficient_on_its_own(trained, tmp_path):
    copy = tmp_path / "somewhere else.ckpt"
    copy.write_bytes((trained / "runs" / "tiny" / "checkpoints" / "best.ckpt").read_bytes())
    contents = torch.load(copy, weights_only=True)
    assert contents["config"]["data"]["sources"] == ["voice", "chords", "drums"]
    assert contents["config"]["data"]["sample_rate"] == 8000
    assert contents["licence"] == "CC0-1.0"
    assert contents["versions"] == {"separate": separate.__version__, "torch": torch.__version__}
    assert {"valid/loss", "valid/si_sdr"} <= contents["scores"].keys()
    estimates = separate.load(copy)(torch.randn(4000), 8000)
    assert list(estimates) == ["voice", "chords", "drums"]


def test_a_run_is_found_by_folder_and_the_newest_by_itself(trained, tmp_path, monkeypatch):
    best = Path("runs/tiny/checkpoints/best.ckpt")
    monkeypatch.chdir(trained)
    assert checkpoint.find("runs/tiny") == checkpoint.find(None) == best
    older = trained / "multirun" / "x" / "0" / "checkpoints" / "best.ckpt"
    older.parent.mkdir(parents=True)
    older.write_bytes(b"")
    os.utime(older, (0, 0))
    assert checkpoint.find(None) == best
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no run with a best checkpoint"):
        checkpoint.find(None)
    with pytest.raises(UsageError, match="does not exist"):
        checkpoint.find("nowhere")
    with pytest.raises(UsageError, match="no checkpoints/best.ckpt"):
        checkpoint.find(".")


@pytest.mark.parametrize("content", [b"", b"text, not tensors", b"PK\x03\x04 cut off"])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad.ckpt is not a checkpoint of separate-train"):
        checkpoint.read(path)


def test_files_of_other_programs_and_newer_formats_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match="not a checkpoint"):
        checkpoint.read(tmp_path / "other.ckpt")
    torch.save({"format": 99, "config": {}, "versions": {"separate": "9.0"}}, tmp_path / "new.ckpt")
    with pytest.raises(UsageError, match=r"written by separate 9.0, newer than this one"):
        checkpoint.read(tmp_path / "new.ckpt")


def test_a_checkpoint_builds_only_trusted_classes(trained, tmp_path):
    contents = checkpoint.read(trained / "runs" / "tiny" / "checkpoints" / "best.ckpt")
    contents["config"]["model"]["_target_"] = "subprocess.Popen"
    path = tmp_path / "evil.ckpt"
    checkpoint.save(path, contents)
    with pytest.raises(UsageError, match=r"subprocess.Popen comes from a package that is not trusted.*--trust subproc"):
        separate.load(path)
    through_us = {"_target_": "separate.parts.build_separator", "config": {}}
    for model in (through_us, {"_target_": "separate.models.recurrent.rearrange"}):
        contents["config"]["model"] = model
        checkpoint.save(path, contents)
        with pytest.raises(UsageError, match=r"not trusted|not a class or function defined there"):
            separate.load(path)
    contents["config"]["model"] = {"_target_": "separate.losses.WaveformLoss"}  # a class of another section
    checkpoint.save(path, contents)
    with pytest.raises(UsageError, match="not trusted"):
        separate.load(path)
    contents["config"]["model"]["_target_"] = "separatists.models.Popen"  # a prefix is not a package
    checkpoint.save(path, contents)
    with pytest.raises(UsageError, match="not trusted"):
        separate.load(path)


def test_source_names_from_a_checkpoint_cannot_point_to_other_folders(trained, tmp_path):
    contents = checkpoint.read(trained / "runs" / "tiny" / "checkpoints" / "best.ckpt")
    for name in ("../../etc/x", "/abs", "..", "all"):
        contents["config"]["data"]["sources"] = ["voice", "chords", name]
        checkpoint.save(tmp_path / "evil.ckpt", contents)
        with pytest.raises(UsageError, match="cannot be the name of a source"):
            separate.load(tmp_path / "evil.ckpt")


def test_a_checkpoint_with_parts_missing_is_refused(trained, tmp_path):
    contents = checkpoint.read(trained / "runs" / "tiny" / "checkpoints" / "best.ckpt")
    for broken in ({**contents, "config": {}}, {**contents, "model": {}}):
        checkpoint.save(tmp_path / "broken.ckpt", broken)
        with pytest.raises(UsageError, match="do not fit each other"):
            separate.load(tmp_path / "broken.ckpt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, {"config": {}, "model": torch.zeros(3)})
    before = path.read_bytes()
    Path(f"{path}.part").symlink_to("/dev/full")
    with pytest.raises(SeparateError, match=r"last.ckpt could not be written \(the disk is full\); make room"):
        checkpoint.save(path, {"config": {}, "model": torch.zeros(10_000_000)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_the_first_format_load_under_their_current_names(trained, tmp_path):
    contents = checkpoint.read(trained / "runs" / "tiny" / "checkpoints" / "best.ckpt")
    old = {"body.representation.normalise": "normalise", "body.recurrent.layers": "recurrent", "head.linear": "masks"}
    model = {}
    for name, value in contents["model"].items():
        for today, then in old.items():
            name = name.replace(f"network.{today}", f"network.{then}")
        model[name] = value
    assert "network.recurrent.weight_ih_l0" in model
    path = tmp_path / "old.ckpt"
    torch.save({**contents, "format": 1, "model": model}, path)
    again = checkpoint.read(path)
    assert list(again["model"]) == list(contents["model"])
    checkpoint.restore(again)


def test_a_unet_of_the_second_format_loads_under_its_current_names(tmp_path):
    config = config_of("unet")
    config["seed"] = 0
    separator = build_separator(config).eval()
    now = separator.state_dict()
    model = {name.replace("networks.0.", ""): value for name, value in now.items()}
    assert set(model) != set(now)
    path = tmp_path / "old.ckpt"
    torch.save({"config": config, "format": 2, "model": model}, path)
    read = checkpoint.load(path).state_dict()
    assert set(read) == set(now) and all(torch.equal(read[name], now[name]) for name in now)
