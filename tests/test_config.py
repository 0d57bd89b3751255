"""The configuration tree composes and builds, and refuses errors with a sentence that names the way out."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from hydra import compose, initialize_config_module
from pydantic import Field

from separate.cli.help import help_text
from separate.compose import data_config, evaluation_data, from_hydra
from separate.config import EvalConfig, TrainConfig
from separate.errors import UsageError, nearest
from separate.instantiate import build
from separate.parts import build_separator

CONF = Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    return sorted(str(path.relative_to(CONF / group).with_suffix("")) for path in (CONF / group).rglob("*.yaml"))


def composed(*overrides: str) -> TrainConfig:
    with initialize_config_module("separate.conf", version_base="1.3"):
        return from_hydra(compose("train", list(overrides)), TrainConfig)


ROOT = ["data.root=x"]
LAYOUTS = {
    "toy": [],
    **dict.fromkeys(("stems", "musdb18", "slakh", "wsj0mix", "wham", "librimix", "pools"), ROOT),
    "manifest": [*ROOT, "data.sources=[a,b]"],
    "shards": [*ROOT, "data.sources=[a,b]"],
}
MUSIC = ("stems", "musdb18", "slakh", "manifest", "shards")
OPEN_GROUPS = [
    "data",
    "augment",
    "cache",
    "stft",
    "model",
    "target",
    "loss",
    "optimizer",
    "scheduler",
    "trainer",
    "logger",
    "debug",
    "experiment",
]


@pytest.mark.parametrize("group", OPEN_GROUPS)
def test_every_file_composes_and_passes_the_schema(group):
    for choice in choices(group):
        files = choice.endswith("_paper")  # these train on a data set
        composed(f"{group}={choice}", *(LAYOUTS[choice] if group == "data" else ROOT if files else []))


def test_every_group_is_tested_above():
    assert {path.relative_to(CONF).parts[0] for path in CONF.rglob("*/*.yaml")} - {"hydra"} == set(OPEN_GROUPS)


@pytest.mark.parametrize("data", LAYOUTS)
def test_each_data_config_brings_the_transform_that_fits_it_and_both_can_be_overridden(data):
    fitting, speech = 4096 if data in MUSIC else 256, composed(f"data={data}", *LAYOUTS[data], "stft=speech")
    assert composed(f"data={data}", *LAYOUTS[data]).stft.n_fft == fitting
    assert speech.stft.n_fft == 256
    assert composed(f"data={data}", *LAYOUTS[data], "stft.hop=32").stft.hop == 32


def test_the_defaults_are_those_documented():
    config = composed()
    assert config.data.name == "toy"
    assert config.model["_target_"].endswith("MaskInference")
    assert config.model["bidirectional"] is True
    assert (config.loss["distance"], config.target["_target_"]) == ("l1", "separate.targets.tpsa")
    assert config.optimizer["_target_"] == "torch.optim.Adam"
    assert config.scheduler is not None
    assert composed("loss=tpsa", "target=psa").target["_target_"] == "separate.targets.psa"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=0"], "batch_size=0 must be at least 1 and at most 65536, e.g. batch_size=16"),
        (
            ["batch_size=many"],
            "batch_size=many must be an integer or auto, at least 1 and at most 65536, e.g. batch_size=16",
        ),
        (["+batchsize=3"], "there is no key batchsize; did you mean batch_size?"),
        (["+trainer.epoch=3"], "there is no key trainer.epoch; did you mean epochs?"),
        (["+data.exerpt=3"], "there is no key data.exerpt; did you mean excerpt?"),
        (["data.excerpt=-1"], "data.excerpt=-1 must be above 0 and at most 86400 seconds, e.g. data.excerpt=4.0"),
        (
            ["data.excerpt=0.01"],
            r"data.excerpt=0.01 s is 80 samples at 8000 Hz, shorter than .* at least data.excerpt=0",
        ),
        (["+data.layout=musdb"], "there is no key data.layout"),
        (["data._target_=separate.data.layouts.stems.Stem"], "has no Stem; did you mean Stems?"),
        (["data._target_=separate.data.layouts.stems.Counter"], "is not a layout"),
        (["data=stems"], "data.root is not set"),
        (["trainer.precision=half"], "trainer.precision=half is unknown; choose from auto, bf16, fp16, fp32, tf32"),
        (["trainer.precision=fp23"], "trainer.precision=fp23 is unknown; did you mean fp32?"),
        (["resume=[true]"], r"resume=\[true\] must be true or false or text"),
        (["data.sources=vocals"], r"data.sources=vocals must be a list of names, e.g. data.sources=\[a,b\]"),
        (["data.excerpt=inf"], "data.excerpt=inf must be above 0 and at most 86400 seconds"),
        (["seed=-1"], "seed=-1 must be at least 0"),
    ],
)
def test_the_schema_refuses_with_the_key_and_the_way_out(overrides, message):
    with pytest.raises(UsageError, match=message):
        composed(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+model.unitz=3"],
            r"there is no key model.unitz \(separate.models.recurrent.MaskInference\); did you mean units",
        ),
        (["data.sources=[a,a]"], "must name at least one source, and each only once"),
        (["data.sources=[a,b/c]"], "'b/c' cannot be the name of a source"),
        (["outputs=4"], "outputs=4 is for data with interchangeable sources"),
        (["outputs=2", "data.interchangeable=true"], "at least 3 of them here"),
        (["model._target_=separate.models.recurrent"], "is not a class or function"),
        (["model.units=big"], "model.units=big must be an integer, e.g. model.units=300"),
        (["model.bidirectional=3"], "model.bidirectional=3 must be true or false"),
        (["model.activation=sigmoidal"], "model: unknown activation sigmoidal; choose from sigmoid"),
        (["model._target_=separate.models.recurrent.MaskInferenze"], "did you mean MaskInference?"),
        (["model._target_=nowhere.Net"], "model._target_=nowhere.Net cannot be imported"),
        (["stft.hop=256"], "stft: hop=256 has no exact inverse with n_fft=256 and window=sqrt_hann"),
        (["stft.window=box"], "stft: unknown window box; choose from hann, sqrt_hann, hamming"),
    ],
)
def test_building_refuses_with_the_key_and_the_way_out(overrides, message):
    with pytest.raises(UsageError, match=message):
        build_separator(asdict(composed(*overrides)))


def test_the_optimizer_section_is_checked_against_torchs_signature():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(UsageError, match="no key optimizer.lrr .*did you mean lr?"):
        build(composed("+optimizer.lrr=1").optimizer, "optimizer", params=parameters)
    with pytest.raises(UsageError, match="optimizer.lr=fast must be a number"):
        build(composed("optimizer.lr=fast").optimizer, "optimizer", params=parameters)
    assert build(composed("optimizer.lr=0.5").optimizer, "optimizer", params=parameters).defaults["lr"] == 0.5


class Annotations:
    """A class of another package, as a configuration may name it."""

    def __init__(
        self,
        units: Annotated[int, Field(ge=2)] = 4,
        kind: Literal["small", "large"] = "small",
        folder: Path | None = None,
        module: "OnlyForTypeCheckers" = None,  # type: ignore # noqa: F821
    ) -> None:
        self.values = (units, kind, folder, module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 1}, "model.units=1: Input should be greater than or equal to 2"),
        ({"units": "3"}, "model.units=3 must be an integer, e.g. model.units=4"),
        ({"units": True}, "model.units=true must be an integer"),
        ({"kind": "larg"}, "model.kind=larg is unknown; did you mean large?"),
        ({"folder": 3}, "model.folder=3 must be of type Path or null"),
        ({"module": [float("inf")]}, r"model.module\[0\]=inf must be a finite number"),
    ],
)
def test_arguments_of_any_class_are_checked_against_its_annotations(options, message):
    spec = {"_target_": f"{__name__}.Annotations"}
    with pytest.raises(UsageError, match=message):
        build({**spec, **options}, "model")
    made = build({**spec, "folder": "a/b", "module": [1]}, "model")
    assert made.values == (4, "small", Path("a/b"), [1])


def test_an_experiment_wins_over_the_defaults():
    assert composed("experiment=causal").model["bidirectional"] is False


def test_evaluation_takes_the_data_of_the_run_unless_overridden():
    trained_on = asdict(composed("data=stems", "data.root=/a").data)
    with initialize_config_module("separate.conf", version_base="1.3"):
        own = from_hydra(compose("eval", []), EvalConfig)
        moved = from_hydra(compose("eval", ["data.root=/b"]), EvalConfig)
        other = from_hydra(compose("eval", ["data=wsj0mix", "data.root=/c"]), EvalConfig)
        wrong = compose("eval", ["overlap=6"])
    assert evaluation_data(trained_on, own.data) == data_config(trained_on)
    assert evaluation_data(trained_on, moved.data) == data_config({**trained_on, "root": "/b"})
    assert evaluation_data(trained_on, other.data).name == "wsj0mix"
    with pytest.raises(UsageError, match="overlap=6 must be at most half of chunk=10 seconds"):
        from_hydra(wrong, EvalConfig)


def test_the_help_has_every_group_and_every_default_key_with_its_comment():
    text = help_text("train")
    for group in OPEN_GROUPS:
        assert f"\n{group}: {', '.join(choices(group))[:20]}" in text
    with initialize_config_module("separate.conf", version_base="1.3"):
        defaults = compose("train")
    for name, value in defaults.items():
        for key in value if hasattr(value, "keys") else [name]:
            assert f"{key}:" in text
    assert "  # examples per step" in text and "resume the run in `run`" in text
    assert "chunk: 10.0" in help_text("eval") and "splits: [train, valid, test]" in help_text("dataset")


@pytest.mark.parametrize("program", ["train", "evaluate", "data", "infer"])
def test_help_imports_neither_hydra_nor_pydantic(program):
    code = (
        f"import sys; sys.argv = ['x', '--help']; from separate.cli.{program} import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit(bool({'hydra', 'omegaconf', 'pydantic', 'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_nearest_name_or_the_list():
    assert nearest("epoch", ["epochs", "clip"]) == "did you mean epochs?"
    assert nearest("zzz", ["b", "a"]) == "choose from a, b"
