"""separate-data: check and describe a data set, or the cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from separate.cli import in_job, reporting_errors, run_hydra
from separate.errors import UsageError, nearest
from separate.files import cache_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from separate.config import DatasetConfig
    from separate.data.layouts.base import FolderLayout

JSON = "--json"
parsed: dict[str, Any] = {}  # the arguments that Hydra does not get: command, json


def data(cfg: DictConfig) -> None:
    return in_job("separate-data", lambda: _data(cfg))


def _data(cfg: DictConfig) -> None:
    from separate.compose import from_hydra
    from separate.config import DatasetConfig

    COMMANDS[parsed["command"]](from_hydra(cfg, DatasetConfig))


def _build(config: DatasetConfig) -> None:
    """Cache all signals of a data set."""
    from separate.data import open_splits
    from separate.data.storage.prefetch import fill, needed
    from separate.data.storage.reading import CachedReader

    if config.cache.kind == "none":
        raise UsageError("cache=none keeps nothing; choose cache=audio or cache=spectrogram")
    for split, examples in open_splits(_file_layout(config), config.splits, config.cache, config.stft).items():
        assert isinstance(examples.reader, CachedReader)
        regions = examples.regions()
        fill(examples.reader, regions, config.data.workers)
        size = needed(examples.reader, regions)
        print(f"{split}: {len(regions)} signals, {size / 1e9:.3g} GB in {examples.reader.cache.folder}", flush=True)


def _cache_info(config: DatasetConfig) -> None:
    """Describe the contents of the cache."""
    from separate.data.storage import cache, quota

    folder = cache_folder(config.cache.folder)
    lines = [*cache.describe(folder / quota.ARRAYS), *quota.describe(folder)]
    print("\n".join([f"{folder}", *lines] if lines else [f"{folder}: empty"]))


def _verify(config: DatasetConfig) -> None:
    """Verify all entries of the cache, and drop the damaged ones."""
    from separate.data.storage.cache import verify
    from separate.data.storage.download import verify_copies
    from separate.data.storage.quota import ARRAYS

    folder = cache_folder(config.cache.folder)
    (count, damaged), (copies, changed) = verify(folder / ARRAYS), verify_copies(folder)
    damaged += changed
    print(f"{count + copies} entries in {folder}, {len(damaged)} damaged")
    for path in damaged:
        print(f"  dropped {path}")
    if damaged:
        raise SystemExit(1)


def _clear(config: DatasetConfig) -> None:
    """Drop all entries of the cache."""
    from separate.data.storage import cache, quota

    folder = cache_folder(config.cache.folder)
    print(f"{cache.clear(folder / quota.ARRAYS) + quota.clear(folder)} entries dropped from {folder}")


def _file_layout(config: DatasetConfig) -> FolderLayout:
    """The data set of a configuration; UsageError without one, or for one without files."""
    from separate.data.layouts.base import FolderLayout

    if config.data is None:
        raise UsageError("no data set is given; choose one, e.g. data=stems data.root=DIR")
    if not isinstance(config.data, FolderLayout):
        raise UsageError(f"data={config.data.name} has no files to look at")
    return config.data


def _check(config: DatasetConfig) -> None:
    """Report the problems of a data set; exit with 1 if one of them is fatal."""
    from dataclasses import asdict

    from separate.data.doctor.checks import examine, table

    findings = examine(_file_layout(config), config.splits, config.cache)
    if parsed["json"]:
        print(json.dumps([{**asdict(finding), "fix": finding.fix} for finding in findings], indent=1))
    else:
        print(table(findings))
    if any(finding.fatal for finding in findings):
        raise SystemExit(1)


def _info(config: DatasetConfig) -> None:
    """Report hours, tracks, levels and activity of each split, and draw a picture of them."""
    from pathlib import Path

    from separate.data.doctor.pictures import picture
    from separate.data.doctor.statistics import summary, survey, table

    found = survey(_file_layout(config), config.splits, config.cache, config.stft)
    print(json.dumps(summary(found), indent=1) if parsed["json"] else table(found))
    if config.picture:
        picture(found, Path(config.picture))
        if not parsed["json"]:
            print(f"picture: {config.picture}")


COMMANDS: dict[str, Callable[[DatasetConfig], None]] = {
    "check": _check,
    "info": _info,
    "cache build": _build,
    "cache info": _cache_info,
    "cache verify": _verify,
    "cache clear": _clear,
}


def main() -> None:
    with reporting_errors("separate-data"):
        words = [word for word in sys.argv[1:3] if word.isalpha()]
        command = " ".join(words)
        if command in COMMANDS:
            rest = sys.argv[1 + len(words) :]
            parsed.update(command=command, json=JSON in rest)
            sys.argv[1:] = [word for word in rest if word != JSON]
        elif not {"--help", "-h", "--hydra-help", "--cfg", "-c"} & set(sys.argv):
            if not command:
                raise UsageError(f"no command is given; choose from {', '.join(COMMANDS)}")
            raise UsageError(f"there is no separate-data {command}; {nearest(command, COMMANDS)}")
    run_hydra("separate-data", data, "dataset")


if __name__ == "__main__":
    main()
