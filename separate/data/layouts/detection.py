"""Detect the layout of a folder, to suggest it in errors about a folder with another layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from separate.config import shipped
from separate.data.storage.headers import folders_in
from separate.errors import DataError

if TYPE_CHECKING:
    from separate.data.layouts.base import FolderLayout, Layout

MOST_FOLDERS = 20  # folders in data.root that are searched


@cache
def shipped_layouts() -> dict[str, type[Layout]]:
    """The classes of the layouts in conf/data by name, those that match few folders first."""
    found = {}
    for name, spec in shipped("data").items():
        module, _, attribute = spec["_target_"].rpartition(".")
        found[name] = getattr(import_module(module), attribute)
    return dict(sorted(found.items(), key=lambda one: one[1].detection_order))


def detect(folder: Path) -> tuple[str, list[str]] | None:
    """The name of the layout of a folder and its sources, or None."""
    for name, kind in shipped_layouts().items():
        sources = kind.looks_like(folder)
        if sources is not None:
            return name, sources
    return None


def hint(layout: FolderLayout) -> str | None:
    """`FOLDER looks like data=NAME data.root=FOLDER`; None if no layout or only the configured one matches."""
    root = layout.folder
    below = [root / name for name in folders_in(root)[:MOST_FOLDERS]] if root.is_dir() else []
    above = [root.parent] if root.parent != root.parent.parent else []  # the whole file system is no data set
    for place in (root, *above, *below):
        if place.is_dir() and (found := detect(place)):
            name, sources = found
            if name == layout.name and place == root and (not sources or set(sources) >= set(layout.sources)):
                return None
            usual = shipped("data")[name]["sources"]
            named = f" 'data.sources=[{','.join(sources)}]'" if sources and sources != sorted(usual) else ""
            return f"{place} looks like data={name} data.root={place}{named}"
    return None


@contextmanager
def hinted(layout: FolderLayout) -> Iterator[None]:
    """Add the hint to a DataError."""
    try:
        yield
    except DataError as error:
        found = hint(layout)
        if found is None:
            raise
        raise DataError(f"{error}; {found}") from None
