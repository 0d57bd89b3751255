"""Hostile input, by cause: read correctly, or refused in one sentence that says what, where and the way out."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

import separate.cli.data
import separate.cli.evaluate
import separate.cli.infer
import separate.cli.train
from separate.compose import data_config
from separate.config import AugmentConfig, EvalConfig, TrainConfig
from separate.data.mixing.augmentation import AudioFormat
from separate.data.mixing.augmenter import Augmenter
from separate.errors import UsageError
from separate.parts import build_loss, build_optimizer, build_schedule, build_separator
from separate.validation import Range, brief
from tests.conftest import target
from tests.test_config import composed

DIGITS = "9" * 21


def refused(call, program: Any, *arguments: str, cwd: Path, code: int = 2) -> str:
    """The one sentence with which a program refuses these arguments."""
    status, _, err = call(program, *arguments, cwd=cwd)
    assert status == code, err
    assert "Traceback" not in err
    return err


# numbers


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"batch_size={DIGITS}", f"batch_size={DIGITS} must be at least 1 and at most 65536, e.g. batch_size=16"),
        (
            "batch_size=[1]",
            "batch_size=[1] must be an integer or auto, at least 1 and at most 65536, e.g. batch_size=16",
        ),
        ("batch_size={a: 1}", "batch_size={a: 1} must be an integer or auto, at least 1"),
        ("batch_size=1e400", "batch_size=inf must be an integer or auto, at least 1"),
        ("batch_size='16'", "batch_size=16 must be an integer or auto, at least 1"),
        ("trainer.clip=true", "trainer.clip=true must be a number or auto or null, above 0"),
        ("logger.tensorboard=1", "logger.tensorboard=1 must be true or false"),
        ("batch_size=true", "batch_size=true must be an integer or auto, at least 1"),
        (f"seed={DIGITS}", "must be at least 0 and at most 9223372036854775807, e.g. seed=0"),
        ("data.tracks.train=[1]", "data.tracks={train: [1], valid: 8, test: 8} must be names with integers"),
        ("data.tracks.train=nan", "data.tracks={train: nan, valid: 8, test: 8} must be names with integers"),
        (f"data.tracks.train={DIGITS}", f"data.tracks.train={DIGITS} must be at least 0 and at most 1000000"),
        ("data.excerpt={a: 1}", "data.excerpt={a: 1} must be a number, above 0 and at most 86400 seconds"),
        ("data.sample_rate=2147483648", "must be at least 1 and at most 1536000 Hz, e.g. data.sample_rate=44100"),
        ("data.sources=[[a]]", "data.sources=[[a]] must be a list of names, e.g. data.sources=[a,b]"),
        ("data.sources=[null]", "data.sources=[null] must be a list of names"),
        ("data._target_=[1]", "data._target_=[1] must be the dotted name of a class"),
        ("trainer.min_delta=nan", "trainer.min_delta=nan must be at least 0"),
        ("augment.equaliser=inf", "augment.equaliser=inf must be at least 0 and at most 100 dB"),
        (
            "augment.gain=[nan,1]",
            "augment.gain[0]=nan must be at least -200 and at most 200 dB, e.g. augment.gain=[-6,6]",
        ),
        ("augment.gain=[[1],2]", "augment.gain=[[1],2] must be a list of numbers or null"),
        ("augment.gain={a: 1}", "augment.gain={a: 1} must be a list of numbers or null"),
        ("augment.speed=[1,inf]", "augment.speed[1]=inf must be at least 0.1 and at most 10"),
        ("cache.limit=nan", "cache.limit=nan must be above 0 and at most 1e+09 GB, e.g. cache.limit=100"),
        (r"data.licence=\${oc.env:HOME}", "is an interpolation, which is not resolved here"),
    ],
)
def test_a_number_outside_its_range_is_refused_by_key_value_range_and_example(override, message):
    with pytest.raises(UsageError) as error:
        composed(override)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.floor=nan", "model.floor=nan must be a finite number of at most 64 bits, e.g. model.floor=-80.0"),
        ("model.units=[1]", "model.units=[1] must be an integer, e.g. model.units=300"),
        (f"model.units={DIGITS}", f"model.units={DIGITS} must be a finite number of at most 64 bits"),
        ("model.units=-3", "units=-3 must be at least 1"),
        ("model.units=10000000", "more than the machine holds"),
        ("model.layers=1000000000", "the machine holds"),
        ("model.mels=1000000000", "mels=1000000000 must lie between 1 and the number of bins, 129"),
        ("model=unet model.patch=1000000000", "seconds for one second of input"),
        ("optimizer.lr=nan", "optimizer.lr=nan must be a finite number"),
        ("optimizer.betas=[nan,1]", "optimizer.betas[0]=nan must be a finite number"),
        ("optimizer.betas=3", "optimizer.betas=3 must be a list of values, e.g. optimizer.betas=[0.9,0.999]"),
        ("optimizer._target_=builtins.dict", "optimizer._target_=builtins.dict"),
        ("optimizer._target_=collections.OrderedDict", "optimizer._target_=collections.OrderedDict"),
        ("optimizer._target_=3", "optimizer._target_=3 must be the dotted name"),
        ("optimizer._target_=..", "optimizer._target_=.. must be the dotted name"),
        ("scheduler.factor=inf", "scheduler.factor=inf must be a finite number"),
        ("scheduler._target_=builtins.dict", "scheduler._target_=builtins.dict"),
        ("loss._target_=builtins.dict", "loss._target_=builtins.dict"),
        ("target._target_=builtins.dict", "target"),
        ("model._target_=builtins.dict", "model._target_=builtins.dict"),
        ("model._target_=torch.nn.Identity", "torch.nn.Identity is not a network, or does not declare its heads"),
    ],
)
def test_sections_with_open_keys_refuse_unusable_values(override, message):
    with pytest.raises(UsageError) as error:
        config = asdict(composed(*override.split()))
        separator = build_separator(config)
        build_loss(config, separator)
        build_schedule(config, build_optimizer(config, separator), "min", 100)
    assert message in str(error.value)


def number_fields(schema: type) -> list[tuple[str, Range | None]]:
    import typing

    hints = typing.get_type_hints(schema)
    found = []
    for one in fields(schema):
        if is_dataclass(hints[one.name]):
            found += number_fields(hints[one.name])
        elif any(kind in str(hints[one.name]).partition("Literal")[0] for kind in ("int", "float")):
            found.append((f"{schema.__name__}.{one.name}", one.metadata.get("range")))
    return found


def test_every_number_of_the_configuration_has_a_range_with_an_end_and_an_example_in_it():
    from separate.config import DatasetConfig
    from separate.data.layouts.detection import shipped_layouts

    known = {key: allowed for schema in (TrainConfig, EvalConfig, DatasetConfig, *shipped_layouts().values())
             for key, allowed in number_fields(schema)}  # fmt: skip
    assert len(known) > 40
    for key, allowed in known.items():
        assert allowed is not None, f"{key} has no range"
        assert math.isfinite(allowed.least) and math.isfinite(allowed.most), key
        example = list(allowed.example.values()) if isinstance(allowed.example, dict) else allowed.example
        if not isinstance(example, str):
            assert all(allowed.holds(one) for one in (example if isinstance(example, list) else [example])), key
        for outside in (math.nan, math.inf, -math.inf, allowed.most + 1, 10**21):
            assert not allowed.holds(outside), key


def test_ranges_hold_where_augment_is_made_without_a_configuration():
    with pytest.raises(UsageError, match="augment.polarity=2 must be at least 0 and at most 1"):
        Augmenter(AugmentConfig(polarity=2), AudioFormat(8000, 1, 100))


def test_values_are_shown_on_one_short_line():
    assert brief([None, True, 1.5, "a\nb"]) == "[null,true,1.5,a b]"
    assert brief(10**5000) == "an integer of about 5001 digits"
    assert len(brief("x" * 10_000)) < 200


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=[1]"], "a group is chosen by a name"),
        (["stft=3"], "a group is chosen by a name"),
        ([f"batch_size={'9' * 5000}"], "integer with too many digits"),
        (["trainer.epochs=${nowhere}"], "nowhere"),
        (["trainer.epochs=${trainer.epochs}"], "ecursi"),
        (["data.sources={a: b}"], "data.sources"),
        (["data.licence=\0"], "licence"),
    ],
)
def test_overrides_that_cannot_be_composed_are_refused_in_a_sentence(call, tmp_path, overrides, message):
    assert message in refused(call, separate.cli.train, *overrides, "run=x", cwd=tmp_path)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("chunk", ["nan", "inf", "1e308", "-1", "0", "86401"])
@pytest.mark.parametrize("program", [separate.cli.infer, separate.cli.evaluate], ids=["infer", "eval"])
def test_chunks_that_are_not_a_length_are_refused(call, tmp_path, program, chunk):
    given = ["--chunk", chunk, "x.wav"] if program is separate.cli.infer else [f"chunk={chunk}"]
    assert "chunk" in refused(call, program, *given, cwd=tmp_path)


@pytest.mark.parametrize("overlap", ["nan", "-1", "6", "1e308"])
def test_overlaps_that_do_not_fit_are_refused(call, tmp_path, overlap):
    assert "--overlap" in refused(call, separate.cli.infer, "--overlap", overlap, "x.wav", cwd=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"excerpt": 10**400}, "data.excerpt=an integer of about 401 digits must be above 0"),  # float() overflows
        ({"pause": [0.1, 10**400]}, "data.pause[1]=an integer of about 401 digits must be at least 0"),
        ({"\ud800": 1}, "which is not text"),
        ({3: 1}, "has the key 3, which is not text"),
        ({"licence": "\ud800"}, "data.licence holds a zero byte or invalid Unicode"),
        ({"licence": "a\0"}, "data.licence holds a zero byte or invalid Unicode"),
        ({"licence": b"x"}, "data.licence is of type bytes"),
        ({"splits": {"train": ["a"]}}, "data.splits={train: [a]} must be names with names"),
    ],
)
def test_values_that_no_file_of_configuration_should_hold_are_refused(change, message):
    values = {"_target_": target("pools"), "root": "x", "sources": ["a"], "sample_rate": 8000, "excerpt": 1.0}
    with pytest.raises(UsageError) as error:
        data_config({**values, **change})
    assert message in str(error.value)
    str(error.value).encode()


def test_the_log_of_a_run_takes_names_in_any_encoding(tmp_path):
    import logging

    with initialize_config_module("separate.conf", version_base="1.3"):
        options = compose("train", return_hydra_config=True).hydra.job_logging.handlers.file
    handler = logging.FileHandler(tmp_path / "log", encoding=options.encoding, errors=options.errors)
    handler.emit(logging.makeLogRecord({"msg": "é \udcff"}))
    handler.close()
    assert (tmp_path / "log").read_text("utf-8") == "é \\udcff\n"
