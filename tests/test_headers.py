"""The list of stored headers is correct or read again, whatever its file holds."""

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from separate.audio import Info
from separate.data.storage import headers
from separate.data.storage.headers import Headers
from tests.conftest import tone, write


@pytest.fixture
def files(tmp_path):
    """Paths of three files, and the list of their headers."""
    endings = ("wav", "flac", "wav")
    paths = [str(write(tmp_path / f"{i}.{ending}", tone(200, 0.1 * (i + 1)))) for i, ending in enumerate(endings)]
    memory = Headers(tmp_path / "headers", tmp_path)
    memory.read(paths)
    return paths, memory


def arrays(memory: Headers) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(memory.path.read_bytes())) as stored:
        return dict(stored)


def archive(contents: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **contents)
    return buffer.getvalue()


DAMAGED = {
    "a kind out of range": {"kind": np.array([0, 7, 0])},
    "a negative kind": {"kind": np.array([0, -1, 0])},
    "a list for the format": {"format": np.array([1, 2])},
    "text for the format": {"format": np.array("two")},
    "frames of two dimensions": {"frames": np.ones((3, 2), np.int64)},
    "frames with a fraction": {"frames": np.array([1.5, 2.5, 3.5])},
    "frames as text": {"frames": np.array(["a", "b", "c"])},
    "too few frames": {"frames": np.array([800, 1600])},
    "negative frames": {"frames": np.array([-1, -1, -1])},
    "a sample rate of 0": {"sample_rate": np.zeros(3, np.int64)},
    "no channels": {"channels": np.zeros(3, np.int64)},
    "paths that are no text": {"paths": np.full(3, 255, np.uint8)},
    "kinds that are no text": {"kinds": np.full(3, 255, np.uint8)},
    "a number for the paths": {"paths": np.array(3)},
}


@pytest.mark.parametrize("signed", [False, True], ids=["as it is", "with its checksum"])
@pytest.mark.parametrize("what", DAMAGED)
def test_a_forged_list_of_headers_is_replaced(files, what, signed, tmp_path):
    paths, memory = files
    right, _ = Headers().read(paths)
    content = archive({**arrays(memory), **DAMAGED[what]})
    memory.path.write_bytes(content + (hashlib.sha256(content).digest() if signed else b""))
    assert memory.read(paths) == (right, [])
    assert Headers(tmp_path / "headers", tmp_path).read(paths) == (right, [])


@pytest.mark.parametrize("change", ["frames", "sample_rate", "channels", "kind", "size", "time"])
def test_every_value_of_the_list_is_under_its_checksum(files, change):
    paths, memory = files
    right, _ = Headers().read(paths)
    contents = arrays(memory)
    whole = memory.path.read_bytes()
    contents[change] = contents[change] * 1000
    memory.path.write_bytes(archive(contents) + whole[-32:])
    assert memory.read(paths) == (right, [])


def test_a_flipped_bit_anywhere_in_the_list_is_detected(files):
    paths, memory = files
    right, _ = Headers().read(paths)
    whole = memory.path.read_bytes()
    for place in range(0, len(whole), 97):
        memory.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert memory.read(paths) == (right, [])


def test_plain_samples_that_the_file_cannot_hold_are_read_again_though_the_checksum_is_right(files):
    paths, memory = files
    right, _ = Headers().read(paths)
    contents = arrays(memory)
    contents["frames"] = contents["frames"] * 1000
    content = archive(contents)
    memory.path.write_bytes(content + hashlib.sha256(content).digest())
    found, problems = memory.read([path for path in paths if path.endswith("wav")])
    assert problems == []
    assert found == {path: info for path, info in right.items() if path.endswith("wav")}


def test_a_flac_file_named_as_another_format_is_stored(tmp_path, monkeypatch):
    """It holds more samples than a WAV of its size can."""
    path = str(write(tmp_path / "x.wav", tone(200, 2.0), format="FLAC"))
    right, _ = Headers(tmp_path / "headers", tmp_path).read([path])
    assert right[path].frames * 2 > Path(path).stat().st_size
    monkeypatch.setattr("separate.data.storage.headers._probe", lambda path: "is read again")
    assert Headers(tmp_path / "headers", tmp_path).read([path]) == (right, [])


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 31,
        b"PK\x03\x04",
        pickle.dumps({"format": 2}),
        archive({"format": np.array([Trap()], object)}),
        archive({}),
    ],
    ids=["nothing", "short", "a cut archive", "a pickle", "a pickled object", "no arrays"],
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_file_that_is_not_a_list_of_headers_is_replaced_and_never_executed(
    files, content, signed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    paths, memory = files
    right, _ = Headers().read(paths)
    memory.path.write_bytes(content + (hashlib.sha256(content).digest() if signed else b""))
    assert memory.read(paths) == (right, [])
    assert not (tmp_path / "trapped").exists()
    assert headers._unpack(memory.path.read_bytes()).keys() >= {(path, *stamp(path)) for path in paths}


def stamp(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def test_stored_headers_are_not_read_again(files, monkeypatch):
    paths, memory = files
    right, _ = Headers().read(paths)
    monkeypatch.setattr("separate.data.storage.headers._probe", lambda path: Info(1, 8000, 1))
    assert memory.read(paths) == (right, [])
