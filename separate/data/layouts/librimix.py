"""LibriMix from its tables ROOT/metadata/mixture_SPLIT_MIX.csv (Cosentino et al., 2020)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os.path import isabs
from pathlib import Path

from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import FoundTracks, SplitFiles, TrackFiles
from separate.data.layouts.wham import NOISE, TaskLayout
from separate.errors import DataError
from separate.files import TextError, check_name, read_text
from separate.validation import brief

SPEAKER = re.compile(r"(\d+)-\d+-\d+")  # of an utterance of LibriSpeech, in the name of a mixture


@dataclass
class LibriMix(TaskLayout):
    """Mixtures listed in tables, one for each split and task.

    A table holds paths on the machine where it was made.  If ROOT has the folder of the split, files are looked for
    there, so that a data set can be moved.  Speakers are in the order of the columns; noise has a column of its name.
    """

    def find(self, split: str, opening: Opening) -> FoundTracks:
        table = self._table(split)
        moved = (self.folder / self.split_name(split)).is_dir()
        found = FoundTracks([], f"the paths in {table}")
        try:
            for values in self._rows(table, found.problems):
                for value in values:
                    check_name(value)
                mixture, *files = (self._place(path, moved) for path in values[1:])
                found.tracks.append(TrackFiles(values[0], mixture, [[file] for file in files], mixture))
        except (TextError, csv.Error) as error:  # of a field without an end
            raise DataError(f"{table}: {error}") from None
        return found

    def _table(self, split: str) -> Path:
        """The table of a split; DataError if it is missing."""
        path = self.folder / "metadata" / f"mixture_{self.split_name(split)}_{self.mixture_name}.csv"
        if path.is_file():
            return path
        others = sorted(other.name for other in path.parent.glob("mixture_*.csv")) if path.parent.is_dir() else []
        if others:
            way_out = f"there are {', '.join(others)}: name another split with data.splits.{split}=NAME"
        else:
            way_out = "data.root is the folder that holds metadata, as Libri2Mix/wav8k/min"
        raise DataError(f"{path} is missing; {way_out}")

    def _rows(self, table: Path, problems: list[str]) -> Iterator[list[str]]:
        """[name, path of the mixture, path of each source] of every row; incomplete rows are added to `problems`."""
        columns = [NOISE if source == NOISE else f"source_{number}" for number, source in enumerate(self.sources, 1)]
        wanted = ["mixture_ID", "mixture_path", *(f"{column}_path" for column in columns)]
        rows = csv.DictReader(io.StringIO(read_text(table), newline=""))
        present = rows.fieldnames or []
        missing = [column for column in wanted if column not in present]
        if missing:
            raise DataError(
                f"{table} has no column {missing[0]}; choose data.sources from its columns: "
                f"{brief(', '.join(present)) or 'none'}"
            )
        for row in rows:
            empty = [column for column in wanted if not row[column]]
            if empty:
                problems.append(f"{table}:{rows.line_num}: has no {empty[0]}")
            else:
                yield [row[column] for column in wanted]

    def _place(self, recorded: str, moved: bool) -> str:
        """The path of a file from its path in the table.  moved: as ROOT/SPLIT/s1/ID.wav."""
        parts = recorded.replace("\\", "/").split("/")
        if moved and len(parts) >= 3:
            return "/".join([str(self.folder), *parts[-3:]])
        return recorded if isabs(recorded) else f"{self.folder}/{recorded}"

    def speakers(self, found: SplitFiles) -> set[str]:
        return {name for track in found.readable for name in SPEAKER.findall(track.name)}

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        return [] if any(folder.glob("metadata/mixture_*.csv")) else None
