"""Validation tracks: from their own folder, or held out of the training folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from separate.errors import DataError

if TYPE_CHECKING:
    from separate.data.layouts.base import FolderLayout

log = logging.getLogger(__name__)

# the validation tracks of MUSDB18 in its authors' package
MUSDB18_VALID = (
    "ANiMAL - Rockshow",
    "Actions - One Minute Smile",
    "Alexander Ross - Goodbye Bolero",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Fergessen - Nos Palpitants",
    "James May - On The Line",
    "Johnny Lokke - Promises & Lies",
    "Leaf - Summerghost",
    "Meaxic - Take A Step",
    "Patrick Talbot - A Reason To Leave",
    "Skelpolu - Human Mistakes",
    "Traffic Experiment - Sirens",
    "Triviul - Angelsaint",
    "Young Griffo - Pennies",
)


def tracks_of_split(layout: FolderLayout, split: str, names_in: Callable[[Path], list[str]]) -> tuple[Path, list[str]]:
    """The folder of a split and the names of its tracks.  names_in: lists the tracks of a folder.

    Without a folder for valid, validation tracks are held out of train: MUSDB18's if train has all of them, else the
    last tenth.
    """
    if split not in ("train", "valid") or layout.split_folder("valid", optional=True).is_dir():
        folder = layout.split_folder(split)
        return folder, names_in(folder)
    folder = layout.split_folder("train")
    names, valid = names_in(folder), layout.splits["valid"]
    if len(names) == 1:
        raise DataError(f"{folder} has only one track, and {layout.folder} no folder {valid}; add tracks")
    held_out = [name for name in names if name in MUSDB18_VALID]
    if len(held_out) < len(MUSDB18_VALID):
        held_out = names[-max(1, round(len(names) / 10)) :] if names else []
    if split == "train":
        return folder, [name for name in names if name not in held_out]
    log.info("%s has no %s folder: held out of training for validation: %s", layout.folder, valid, ", ".join(held_out))
    return folder, held_out
