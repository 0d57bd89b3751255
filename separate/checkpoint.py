"""Checkpoints: one file with everything needed to separate or to resume training."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from separate.compose import check_stored, with_target
from separate.errors import MISFIT, UsageError
from separate.files import replace_file
from separate.validation import brief

if TYPE_CHECKING:
    import torch

    from separate.separator import Separator

PICKLED = 2**22  # largest size in bytes of the pickle, which holds all but the values of tensors
FORMAT = 4  # raise it when older versions cannot read the file


def save(path: Path, contents: dict[str, Any]) -> None:
    """Write tensors and plain values atomically: after a crash the old or the new file is complete."""
    replace_file(path, to_bytes({"format": FORMAT, **contents}))


def to_bytes(contents: dict[str, Any]) -> bytes:
    """The bytes of torch.save, in memory, because torch raises many kinds of errors on a full disk."""
    import torch

    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; UsageError for another kind of file, a damaged file or one of a newer version.

    The file may come from anyone: this runs no code in it, resolves no interpolation, and checks the sizes in it.
    """
    import torch

    if not path.is_file():  # reading a pipe would block
        raise UsageError(f"{path} is not a file; give a run's folder or a checkpoint")
    try:
        size = path.stat().st_size
        with ZipFile(path) as packed:
            parts = packed.infolist()
        sound = sum(part.file_size for part in parts) <= size  # torch does not compress
        sound &= all(part.file_size <= PICKLED for part in parts if part.filename.endswith("data.pkl"))
        contents = torch.load(path, map_location="cpu", weights_only=True) if sound else None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # unpickling other data raises any exception
        contents = None
    if (
        not isinstance(contents, dict)
        or type(contents.get("format")) is not int
        or contents["format"] < 1
        or "config" not in contents
    ):
        raise UsageError(f"{path} is not a checkpoint of separate-train; give a run's folder or its best.ckpt")
    if contents["format"] > FORMAT:
        versions = contents.get("versions")
        version = versions.get("separate") if isinstance(versions, dict) else None
        raise UsageError(
            f"{path} was written by separate {brief(version)}, newer than this one; upgrade with pip install --upgrade "
            f"separate"
        )
    try:
        _check(contents, size)
        contents["config"]["data"] = with_target(contents["config"]["data"])
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if (format := contents["format"]) < 3:
        network = str(contents["config"]["model"].get("_target_"))
        contents["model"] = {_renamed(name, format, network): value for name, value in contents["model"].items()}
    return contents


def _check(contents: dict[str, Any], size: int) -> None:
    """UsageError for an invalid configuration or invalid weights.  size: of the file in bytes."""
    import torch

    check_stored(contents["config"])
    weights = contents.get("model")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in weights.items()
    ):
        raise UsageError("its weights are not tensors by name")
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > 2 * size:
        raise UsageError(f"its weights claim to be larger than the file, which has {size:,} bytes")


def _renamed(name: str, format: int, network: str) -> str:
    """The current name of a weight in an older format.  Format 1: one network.  Format 2: one U-Net for all sources."""
    first, _, rest = name.removeprefix("network.").partition(".")
    if format == 1:
        renamed = {
            "normalise": "body.representation.normalise",
            "recurrent": "body.recurrent.layers",
            "masks": "head.linear",
        }
        return f"network.{renamed[first]}.{rest}" if name.startswith("network.") and first in renamed else name
    inner = network == "separate.models.unet.UNet" and first in ("encoder", "decoder")
    return f"network.networks.0.{first}.{rest}" if inner else name


def find(where: str | Path | None) -> Path:
    """The path of a checkpoint.  where: a checkpoint, a run's folder (its best), or None for the newest best.ckpt."""
    if where is None:
        found = [
            path
            for top in ("runs", "multirun")
            for path in Path(top).glob("**/checkpoints/best.ckpt")
            if path.is_file()
        ]
        if not found:
            raise UsageError(
                "there is no run with a best checkpoint under runs/ or multirun/ in this folder; train one with "
                "separate-train, or name one"
            )
        return max(found, key=lambda path: path.stat().st_mtime)
    path = Path(where).expanduser()
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        if not best.is_file():
            raise UsageError(
                f"{path} has no checkpoints/best.ckpt: it is not a run's folder, or the first epoch has not ended"
            )
        return best
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}; give a run's folder or a checkpoint")
    return path


def run_folder(path: Path) -> Path:
    """The folder of the run of a checkpoint, or the folder of the file outside a run."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def restore(contents: dict[str, Any], trust: Sequence[str] = ()) -> Separator:
    """The separator in a checkpoint, in evaluation mode.  Only classes of separate and of `trust` are built."""
    from separate.instantiate import trusted
    from separate.parts import build_separator

    try:
        separator = build_separator(contents["config"], trusted(trust), contents["model"])
        separator.load_state_dict(contents["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"{MISFIT}: {brief(error)}") from None
    return separator.eval()


def load(
    run_or_checkpoint: str | Path | None = None, device: str | torch.device = "cpu", trust: Sequence[str] = ()
) -> Separator:
    """A trained separator, from a run's folder (its best checkpoint) or a checkpoint file.

    By default the newest run under runs/ or multirun/.  device: auto, cpu, cuda, mps.
    trust: other packages whose networks the checkpoint may build; loading one runs that package's code.
    UsageError if the file does not exist or is not a checkpoint.
    """
    from separate.device import choose_device

    return restore(read(find(run_or_checkpoint)), trust).to(choose_device(device))
