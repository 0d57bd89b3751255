"""Training steps on all processes of torchrun, for tests/test_distributed.py: python -m tests.rank_steps FOLDER."""

import sys
from pathlib import Path

import torch

from separate.config import TrainerConfig
from separate.data.example import Example
from separate.data.loader import Share
from separate.parts import build_loss, build_separator
from separate.training.data_parallel import parallelise
from separate.training.distributed import Ranks, join
from separate.training.setup import measure, prepare
from separate.training.state import State, Training
from separate.training.step import train_step
from tests.test_device import STEPS, config_for
from tests.test_trainer import CONFIG

EXAMPLES = 5  # do not divide by the number of processes


def steps(case: tuple[str, str, bool], ranks: Ranks, folder: Path) -> list[torch.Tensor]:
    """The metrics, the weights and the statistics after two steps on a batch."""
    model, loss, interchangeable = case
    config = config_for(model, loss, interchangeable)
    names = config["data"]["sources"]
    generator = torch.Generator().manual_seed(1)
    signals = 0.1 * torch.randn(EXAMPLES, len(names), 1, 320, generator=generator)
    torch.manual_seed(0)
    separator = build_separator(config).train()
    objective = build_loss(config, separator)
    optimizer = torch.optim.SGD(separator.parameters(), lr=0.1)
    state = State(separator, optimizer, None, torch.amp.GradScaler("cpu", enabled=False))
    training = Training(
        loss=objective,
        train=[],
        valid=[],
        options=TrainerConfig(precision="fp32", clip=1.0),
        batch_size=EXAMPLES,
        seed=0,
        workers=0,
        folder=folder,
        config={},
        ranks=ranks,
        compute=parallelise(separator, objective, ranks),
    )
    share = Share(ranks.rank, ranks.size, objective.neighbours)
    examples = [Example("noise", signals[number].numpy()) for number in share.of(range(EXAMPLES))]
    drawn = share.collate(range(EXAMPLES), examples)
    found = [dict(sorted(train_step(state, training, drawn).items())) for _ in range(2)]
    assert all("loss" in metrics for metrics in found), (case, found)
    return [torch.tensor([list(metrics.values()) for metrics in found]), *separator.state_dict().values()]


def all_steps(ranks: Ranks, folder: Path) -> dict[tuple[str, str, bool], list[torch.Tensor]]:
    return {case: steps(case, ranks, folder) for case in STEPS}


def bad_step(ranks: Ranks, folder: Path) -> bool:
    """Whether a step with a NaN in the share of the last rank leaves the weights of this rank as they were."""
    state, training = prepare(CONFIG, folder, ranks=ranks)
    before = [weight.clone() for weight in state.separator.parameters()]
    batch = training.steps[0]
    if ranks.rank == ranks.size - 1:
        batch.sources[-1, 0, 0, 100] = float("nan")
    found = train_step(state, training, batch)
    same = all(map(torch.equal, before, state.separator.parameters()))
    return found == {"skipped": 1} and state.skipped == 1 and same


def measured(ranks: Ranks, folder: Path) -> list[torch.Tensor]:
    """Shift and scale of an input that is normalised by the statistics of the training set."""
    config = {**CONFIG, "batch_size": EXAMPLES, "model": {**CONFIG["model"], "normalisation": "whiten"}}
    state, training = prepare(config, folder, ranks=ranks)
    measure(state, training)
    normalise = next(m for m in state.separator.modules() if hasattr(m, "use_statistics") and hasattr(m, "shift"))
    return [normalise.shift, normalise.scale]


def results(ranks: Ranks, folder: Path) -> dict:
    return {"steps": all_steps(ranks, folder), "measured": measured(ranks, folder)}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    torch.set_num_threads(1)
    ranks = join()
    found = {**results(ranks, place), "skips": bad_step(ranks, place)}
    torch.save(found, place / f"rank_{ranks.rank}.pt")
    ranks.leave(0)
