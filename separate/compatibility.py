"""Compatibility of losses and networks, and an error that lists compatible pairs."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from separate.config import shipped
from separate.errors import UsageError

if TYPE_CHECKING:
    from separate.losses import Loss

DIFFERENTIABLE = ("masks", "complex_masks", "waveforms")  # heads that give differentiable estimates


def check_pair(loss: Loss, network: Any) -> None:
    """UsageError unless the loss finds its heads in the network, and trains the head used for separation."""
    if trains(loss, network):
        return
    head = getattr(network, "separates_by", None)
    if _lacks_sources(loss, network):
        missing = ["estimates without the sources"]
    else:
        missing = [need for need in loss.needs if not suits((need,), network.provides, head)]
    raise UsageError(
        f"{type(loss).__name__} needs {' and '.join(missing or loss.needs)}, and {type(network).__name__} provides "
        f"{', '.join(network.provides)}{f' and separates by its {head}' if head else ''}. This model works with "
        f"loss={', '.join(losses_for(network))}; this loss with model={', '.join(models_for(loss))}"
    )


def trains(loss: Loss, network: Any) -> bool:
    """Whether a loss trains a network."""
    head = getattr(network, "separates_by", None)
    return suits(loss.needs, network.provides, head) and not _lacks_sources(loss, network)


def _lacks_sources(loss: Loss, network: Any) -> bool:
    """Whether the network needs isolated sources for training, and the loss has none."""
    return loss.without_sources and getattr(network, "trains_on_sources", False)


def suits(needs: Iterable[str], provides: Iterable[str], head: str | None = None) -> bool:
    """Whether a loss with these needs trains a network with these heads.

    head: masks or embeddings, for a network that can separate by either.
    """
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
    """Names of the losses in conf/loss that train a network."""
    from separate import targets
    from separate.loss_builder import LossBuilder

    builders = [LossBuilder(target) for target in (targets.tpsa, targets.cirm)]
    return [
        name
        for name in shipped("loss")
        if name == "sum" or any(trains(builder.by_name(name), network) for builder in builders)
    ]


def models_for(loss: Loss) -> list[str]:
    """Names of the models in conf/model that a loss trains, each with the option that it needs for that."""
    found = []
    for name, spec in shipped("model").items():
        module, _, attribute = spec["_target_"].rpartition(".")
        network = getattr(import_module(module), attribute)
        if _lacks_sources(loss, network):
            continue
        if suits(loss.needs, network.provides, spec.get("separates_by")):
            found.append(name)
        elif "complex_masks" in spec and suits(loss.needs, ("complex_masks",)):
            found.append(f"{name} model.complex_masks=true")
        elif "separates_by" in spec and suits(loss.needs, network.provides, "embeddings"):
            found.append(f"{name} model.separates_by=embeddings")
    return found
