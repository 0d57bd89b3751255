"""Build losses from their specifications or from names of files in conf/loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from separate.config import shipped
from separate.errors import UsageError, nearest
from separate.instantiate import build
from separate.targets import Target


@dataclass(frozen=True)
class LossBuilder:
    """Builds the losses of a training.

    target: the configured target; interchangeable, sources: properties of the data; trust: as in `instantiate.build`.
    """

    target: Target
    interchangeable: bool = False
    sources: Sequence[str] | None = None
    trust: Sequence[str] | None = None

    def build(self, spec: Mapping[str, Any], where: str = "loss") -> Any:
        """Build the loss of a specification; a weighted sum builds its terms with `by_name`."""
        context = {"target": self.target, "interchangeable": self.interchangeable, "sources": self.sources}
        return build(spec, where, self.trust, build_term=self.by_name, **context)

    def by_name(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Build the loss of conf/loss/NAME.yaml, or of the class `_target_` in the options.

        options: override those of the file; `target` is the name or the specification of another target.
        UsageError for an unknown loss or target.
        """
        where, options = f"loss.terms.{name}", dict(options or {})
        spec = options if "_target_" in options else {**_file(name), **options}
        target = spec.pop("target", None) or own_target(spec)
        if isinstance(target, str):
            files = shipped("target")
            if target not in files:
                raise UsageError(f"unknown target in terms.{name}: {target}; {nearest(target, files)}")
            target = files[target]
        chosen = self.target if target is None else build(target, f"{where}.target", self.trust)
        spec.pop("defaults", None)
        return LossBuilder(chosen, self.interchangeable, self.sources, self.trust).build(spec, where)


def own_target(spec: Mapping[str, Any]) -> str | None:
    """The name of the target that a file of conf/loss chooses in its defaults list."""
    defaults = spec.get("defaults", [])
    return next((name for default in defaults for key, name in default.items() if "/target" in key), None)


def _file(name: str) -> dict[str, Any]:
    files = shipped("loss")
    if name not in files:
        raise UsageError(
            f"unknown loss in terms: {name} (a loss of your own needs its class, "
            f"{name}: {{_target_: package.module.Class}}); {nearest(name, files)}"
        )
    return files[name]
