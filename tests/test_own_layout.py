"""A layout of the user's own: the recipe of separate/data/layouts/README.md, followed in a temporary folder."""

import re
from pathlib import Path

import numpy as np
import pytest

from separate import checkpoint
from separate.cli import data as data_program
from separate.cli import evaluate, train
from tests.conftest import TINY, write

README = Path(__file__).parents[1] / "separate" / "data" / "layouts" / "README.md"
FAST = ["debug=fast", *TINY, "data.workers=0", "run=run"]


def block(language: str) -> str:
    """The only code of this language in the recipe."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    return found


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package and the YAML of the recipe, and takes of two singers in three splits."""
    (tmp_path / "takes.py").write_text(block("python"))
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "takes.yaml").write_text(block("yaml"))
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for number in range(3):
            for singer in ("left", "right"):
                noise = 0.1 * rng.standard_normal((16_000, 1))
                write(tmp_path / "recordings" / f"{split}-{number}.{singer}.wav", noise)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_own_layout_trains_and_is_evaluated_when_trusted(own, call):
    named = ["--config-dir", "conf", "data=takes", "data.root=recordings"]
    code, out, err = call(data_program, "check", *named, cwd=own)
    assert code == 0, out + err
    code, _, err = call(train, *named, *FAST, cwd=own)
    assert code == 0, err
    stored = checkpoint.read(own / "run" / "checkpoints" / "best.ckpt")["config"]["data"]
    assert stored["_target_"] == "takes.Takes" and stored["skip"] == 0
    code, _, err = call(evaluate, "run=run", "device=cpu", cwd=own)
    assert code == 2 and len(err.splitlines()) == 1
    assert "data._target_=takes.Takes comes from a package that is not trusted" in err
    code, out, err = call(evaluate, "run=run", "device=cpu", "trust=[takes]", cwd=own)
    assert code == 0 and "scores:" in out, err
    code, _, err = call(evaluate, *named, "run=run", "device=cpu", cwd=own)  # the user names the layout
    assert code == 0 and (own / "run" / "eval" / "takes-test").is_dir(), err


def test_a_run_with_an_own_layout_is_resumed_when_trusted(own, call):
    named = ["--config-dir", "conf", "data=takes", "data.root=recordings"]
    code, _, err = call(train, *named, *FAST, cwd=own)
    assert code == 0, err
    more = ["run=run", "resume=true", "trainer.epochs=2"]
    code, _, err = call(train, *more, cwd=own)
    assert code == 2 and "data._target_=takes.Takes comes from a package that is not trusted" in err
    code, _, err = call(train, *more, "trust=[takes]", cwd=own)
    assert code == 0, err
    code, _, err = call(train, *named, "run=run", "resume=true", "trainer.epochs=3", cwd=own)
    assert code == 0, err


def test_the_keys_of_an_own_layout_are_checked(own, call):
    named = ["--config-dir", "conf", "data=takes", "data.root=recordings", *FAST]
    for override, message in (
        ("data.skip=one", "data.skip=one must be an integer, at least 0 and at most 1000 takes"),
        ("+data.skipp=1", "there is no key data.skipp; did you mean skip?"),
        ("data.skip=-1", "data.skip=-1 must be at least 0 and at most 1000 takes"),
        ("data.skip=3", "no tracks found; looked for recordings/train-NUMBER.{left,right}.wav"),
    ):
        code, _, err = call(train, *named, override, cwd=own)
        assert code in (1, 2) and message in err, err
