"""batch_size=auto: the largest power of two that fits, on a device and in control groups."""

import logging

import pytest
import torch
from omegaconf import OmegaConf

from separate import checkpoint
from separate.cli import train
from separate.errors import SeparateError, UsageError
from separate.models.recurrent import MaskInference
from separate.training import batch_size
from separate.training.batch_size import available, search
from separate.training.setup import prepare
from tests.conftest import TINY_TOY
from tests.test_preflight import copied, everything, same
from tests.test_trainer import CONFIG


class Small(MaskInference):
    """A network with memory for a few examples."""

    fits = 2

    def forward(self, spectrogram):
        if len(spectrogram) > self.fits:
            raise torch.OutOfMemoryError("no memory")
        return super().forward(spectrogram)


def auto(folder, **changes):
    model = {**CONFIG["model"], "_target_": "tests.test_batch_size.Small"}
    return prepare({**CONFIG, "model": model, "batch_size": "auto", **changes}, folder)


@pytest.mark.parametrize(("fits", "found"), [(1, 1), (3, 2), (4, 4), (10**6, 8)])
def test_the_largest_power_of_two_without_running_out_of_memory_is_taken(fits, found, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Small, "fits", fits)
    data = {**CONFIG["data"], "examples": 11} if "examples" in CONFIG["data"] else CONFIG["data"]
    state, training = auto(tmp_path, data=data)
    most = 1 << (len(training.train).bit_length() - 1)
    assert training.batch_size == training.config["batch_size"] == min(found if fits < 10**6 else most, most)
    assert f"batch_size=auto: {training.batch_size} examples; a step takes" in caplog.text
    fixed, _ = prepare({**training.config}, tmp_path)
    assert same(copied(everything(fixed)), copied(everything(state)))


def test_a_network_that_does_not_fit_at_all_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Small, "fits", 0)
    with pytest.raises(SeparateError, match=r"a step of 1 example\(s\) with data.excerpt=0.5 does not fit the memory"):
        auto(tmp_path)


def test_the_parts_of_a_batch_have_examples(tmp_path, monkeypatch):
    _, training = auto(tmp_path, trainer={**CONFIG["trainer"], "accumulate": 3})
    assert training.batch_size == 4  # of which the parts of two examples fit
    with pytest.raises(UsageError, match="trainer.accumulate=5000 splits a batch into more parts"):
        auto(tmp_path, trainer={**CONFIG["trainer"], "accumulate": 5000})


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="batch_size=auto measures one process only"):
        auto(tmp_path)


def test_a_resumed_run_keeps_the_number(call, tmp_path, monkeypatch):
    options = [*TINY_TOY, "batch_size=auto", "run=r"]
    code, _, err = call(train, *options, cwd=tmp_path)
    assert code == 0, err
    stored = checkpoint.read(tmp_path / "r" / "checkpoints" / "last.ckpt")["config"]["batch_size"]
    assert OmegaConf.load(tmp_path / "r" / "config.yaml").batch_size == stored
    assert stored & (stored - 1) == 0
    monkeypatch.setattr(batch_size, "MOST", 1)
    code, _, err = call(train, *options, "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err
    assert checkpoint.read(tmp_path / "r" / "checkpoints" / "last.ckpt")["config"]["batch_size"] == stored


def test_no_size_is_tried_that_would_exceed_the_memory():
    tried = []

    def measured(size):
        tried.append(size)
        return 100 + 10 * size

    assert search(measured, 1, 4096, limit=200, start=100) == (8, 180)
    assert tried == [1, 2, 4, 8]  # 16 would take 260
    assert search(measured, 1, 4096, limit=260, start=100) == (16, 260)
    assert search(measured, 1, 4096, limit=105, start=100) == (0, 0)
    assert search(measured, 1, 8, limit=10**6, start=100) == (8, 180)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def machine(folder, group, free_kb=8000):
    write(folder / "proc", meminfo=f"MemTotal: 9000 kB\nMemAvailable: {free_kb} kB")
    write(folder / "proc" / "self", cgroup=group)
    return folder / "groups", folder / "proc"


def test_the_free_memory_of_the_system_counts_without_control_groups(tmp_path):
    assert available(*machine(tmp_path, "0::/")) == 8000 * 1024


def test_limits_of_control_groups_of_version_2_count_with_those_above(tmp_path):
    groups, process = machine(tmp_path, "0::/user/job")
    write(groups / "user" / "job", memory__max="max", memory__current=500_000)
    assert available(groups, process) == 8000 * 1024
    write(groups / "user", memory__max=1_000_000, memory__current=600_000, memory__stat="anon 1\ninactive_file 100000")
    assert available(groups, process) == 500_000
    write(groups / "user" / "job", memory__max=550_000)
    assert available(groups, process) == 50_000
    write(groups / "user" / "job", memory__max=400_000)
    assert available(groups, process) == 0


def test_limits_of_control_groups_of_version_1_count(tmp_path):
    groups, process = machine(tmp_path, "5:cpu,cpuacct:/other\n4:memory:/job")
    place = groups / "memory" / "job"
    write(place, memory__limit_in_bytes=2_000_000, memory__usage_in_bytes=1_500_000)
    assert available(groups, process) == 500_000
    write(place, memory__stat="total_inactive_file 250000")
    assert available(groups, process) == 750_000
    write(place, memory__limit_in_bytes=2**63 - 4096)  # no limit
    assert available(groups, process) == 8000 * 1024
