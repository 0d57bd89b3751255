"""Which losses train which networks, and the sentence that refuses a pair that cannot work."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from separate.config import shipped
from separate.errors import UsageError

if TYPE_CHECKING:
    from separate.losses import Loss

DIFFERENTIABLE = ("masks", "complex_masks", "waveforms")  # heads that estimates are made of, with a gradient


def check_pair(loss: Loss, network: Any) -> None:
    """UsageError for a loss that needs a head that the network lacks, or leaves untrained what it separates by."""
    head = getattr(network, "separates_by", None)
    blind = loss.without_sources and getattr(network, "trains_on_sources", False)
    if blind or not suits(loss.needs, network.provides, head):
        missing = [need for need in loss.needs if not suits((need,), network.provides, head)]
        missing = ["estimates without the sources"] if blind else missing
        raise UsageError(
            f"{type(loss).__name__} needs {' and '.join(missing or loss.needs)}, and {type(network).__name__} provides "
            f"{', '.join(network.provides)}{f' and separates by its {head}' if head else ''}. This model works with "
            f"loss={', '.join(losses_for(network))}; this loss with model={', '.join(models_for(loss))}"
        )


def suits(needs: Iterable[str], provides: Iterable[str], head: str | None = None) -> bool:
    """Whether a loss with these needs trains a network with these heads.  head: what it separates by, of several."""
    given = set(provides)
    if head != "embeddings" and given & set(DIFFERENTIABLE):
        given.add("estimates")
    if head == "masks":
        trained = {"masks", "estimates"} & set(needs)
    elif head == "embeddings":
        trained = {"embeddings"} & set(needs)
    else:
        trained = given
    return set(needs) <= given and bool(trained)


def losses_for(network: Any) -> list[str]:
    """The names of our losses that train a network."""
    from separate import targets
    from separate.losses import LOSSES, MixITLoss

    def works(needs: Iterable[str]) -> bool:
        return suits(needs, network.provides, getattr(network, "separates_by", None))

    found = []
    for name, (kind, fixed, own) in LOSSES.items():
        configured = [own] if own is not None else [targets.tpsa, targets.cirm]
        if any(works(kind(target=target, **fixed).needs) for target in configured):
            found.append(name)
    if works(("embeddings", "masks")):
        found.append("chimera")
    if works(MixITLoss.needs) and not getattr(network, "trains_on_sources", False):
        found.append("mixit")
    return [*found, "sum"]


def models_for(loss: Loss) -> list[str]:
    """The names of our models that a loss trains, with the option that makes them fit."""
    found = []
    for name, spec in shipped("model").items():
        module, _, attribute = spec["_target_"].rpartition(".")
        network = getattr(import_module(module), attribute)
        if loss.without_sources and getattr(network, "trains_on_sources", False):
            continue
        if suits(loss.needs, network.provides, spec.get("separates_by")):
            found.append(name)
        elif "complex_masks" in spec and suits(loss.needs, ("complex_masks",)):
            found.append(f"{name} model.complex_masks=true")
        elif "separates_by" in spec and suits(loss.needs, network.provides, "embeddings"):
            found.append(f"{name} model.separates_by=embeddings")
    return found
