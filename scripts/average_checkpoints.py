#!/usr/bin/env python3
"""Average the weights of several checkpoints of one configuration, or of the best epochs of a run.

    separate-train trainer.keep_best=5 run=RUN
    python scripts/average_checkpoints.py RUN --out average.ckpt
    python scripts/average_checkpoints.py A.ckpt B.ckpt C.ckpt --out average.ckpt
    separate-eval run=average.ckpt

The mean is uniform and computed in float64.  Integers (counts) come from the newest checkpoint.  The result can
separate, but training cannot resume from it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from separate import checkpoint
from separate.config import flatten
from separate.errors import SeparateError, UsageError
from separate.training.resume import MAY_CHANGE
from separate.training.selection import epoch_name
from separate.validation import brief

KEPT = ("config", "examples", "licence", "versions")  # copied from the newest checkpoint


def chosen(paths: list[Path]) -> list[Path]:
    """The checkpoints to average: `paths`, or the best epochs of a run if `paths` is its folder."""
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0] / "checkpoints"
        state = checkpoint.read(folder / "last.ckpt").get("training")
        kept = state.get("kept", []) if isinstance(state, dict) else []
        paths = [folder / f"{epoch_name(int(epoch))}.ckpt" for _, epoch in kept]
        if len(paths) < 2:
            raise UsageError(
                f"{folder.parent} has kept {len(paths)} epochs; train with trainer.keep_best=5, or name checkpoints"
            )
    if len(paths) < 2:
        raise UsageError("one checkpoint has no average; name two or more checkpoints, or the folder of a run")
    return paths


def check_same(contents: dict[str, Any], first: dict[str, Any], path: Path, where: Path) -> None:
    """UsageError unless two checkpoints have the same configuration, except for keys that a resumed run may change."""
    ours, theirs = flatten(contents["config"]), flatten(first["config"])
    for key in sorted(ours.keys() | theirs.keys()):
        free = any(f"{key}.".startswith(f"{name}.") for name in MAY_CHANGE)
        if not free and ours.get(key) != theirs.get(key):
            raise UsageError(
                f"{path} has {key}={brief(ours.get(key))} and {where} has {brief(theirs.get(key))}; average only "
                f"checkpoints of one configuration"
            )
    shapes = [{name: tensor.shape for name, tensor in one["model"].items()} for one in (contents, first)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"{path} and {where} have weights of other names or shapes; average only checkpoints of one network"
        )


def step_of(contents: dict[str, Any]) -> int:
    """The number of training steps of a checkpoint, -1 if unknown."""
    training = contents.get("training")
    return int(training.get("step", -1)) if isinstance(training, dict) else -1


def average(paths: list[Path]) -> dict[str, Any]:
    """The contents of the averaged checkpoint.  In memory: the sum, and the first, newest and current file."""
    total: dict[str, torch.Tensor] = {}
    newest, first = None, None
    sources = []
    for path in paths:
        contents = checkpoint.read(path)
        first = contents if first is None else first
        check_same(contents, first, path, paths[0])
        for name, tensor in contents["model"].items():
            if tensor.is_floating_point():
                total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + tensor.double()
        sources.append({"path": str(path), "step": step_of(contents), "weights": contents.get("weights", "raw")})
        newest = contents if newest is None or step_of(contents) > step_of(newest) else newest
    assert newest is not None
    means = {name: (value / len(paths)).to(newest["model"][name].dtype) for name, value in total.items()}
    kept = {name: newest[name] for name in KEPT if name in newest}
    return {**kept, "scores": {}, "model": {**newest["model"], **means}, "averaged": sources}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="checkpoints, or the folder of one run")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    arguments = parser.parse_args()
    try:
        paths = chosen(arguments.checkpoints)
        checkpoint.save(arguments.out, average(paths))
    except (UsageError, SeparateError) as error:
        sys.exit(str(error))
    print(f"{arguments.out}: the average of {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
