"""Learning rate schedules: curves against closed formulas, resumption, skipped steps."""

import json
import math
import signal
from functools import cache

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from separate import checkpoint
from separate.cli import train
from separate.config import shipped
from separate.errors import UsageError
from separate.parts import build_schedule, check_schedule
from separate.training.interruption import Stopped
from separate.training.schedules import WarmupCosine, after_epoch, before_step
from separate.training.setup import prepare
from separate.training.step import train_step
from separate.training.trainer import fit
from tests.conftest import TINY_TOY
from tests.test_trainer import CONFIG, first_batch, weights
from tests.tiny import without_defaults

RATE, EPOCHS, STEPS = 0.02, 3, 4
SCHEDULES = sorted(shipped("scheduler"))
CLOSED = {  # the learning rate of a step of an epoch, both counted from 0
    "none": lambda step, epoch: RATE,
    "exponential": lambda step, epoch: RATE * 0.95**epoch,
    "step": lambda step, epoch: RATE * 0.98 ** (epoch // 2),
    "cosine": lambda step, epoch: 1e-5 + (RATE - 1e-5) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2,
    "warmup_cosine": lambda step, epoch: RATE * warmup_cosine(step, round(0.3 * EPOCHS * STEPS), 0.01),
    "one_cycle": lambda step, epoch: RATE * one_cycle(step, 0.3 * EPOCHS * STEPS - 1),
    "plateau": lambda step, epoch: RATE * (0.5 if epoch == 2 else 1.0),  # the second epoch is no improvement
}
CHANGES = {"cosine": {"T_max": EPOCHS}, "warmup_cosine": {"warmup": 0.3}, "plateau": {"patience": 0}}


def warmup_cosine(step, rising, end):
    if step < rising:
        return (step + 1) / rising
    share = (step + 1 - rising) / (EPOCHS * STEPS - rising)
    return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle(step, peak):
    first, last = 1 / 25, 1 / 25e4
    if step <= peak:
        return first + (1 - first) * (1 - math.cos(math.pi * step / peak)) / 2
    return last + (1 - last) * (1 + math.cos(math.pi * (step - peak) / (EPOCHS * STEPS - 1 - peak))) / 2


def spec_of(name):
    spec = shipped("scheduler")[name]
    return {**without_defaults(spec), **CHANGES.get(name, {})} if spec else None


def start(folder, spec, **trainer):
    config = {**CONFIG, "scheduler": spec, "optimizer": {"_target_": "torch.optim.Adam", "lr": RATE}}
    options = {"epochs": EPOCHS, "steps_per_epoch": STEPS, **trainer}
    return prepare({**config, "trainer": {**CONFIG["trainer"], **options}}, folder)


def schedule_of(spec, total=12, mode="min", rates=(RATE,)):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, lr=RATE)
    return build_schedule({"scheduler": spec}, optimizer, mode, total), optimizer


def rates_of(spec, epochs=EPOCHS, steps=STEPS, values=(1.0,) * 100, rates=(RATE,)):
    """The learning rate of each step for each group.  values: of the monitored metric."""
    schedule, optimizer = schedule_of(spec, epochs * steps, rates=rates)
    found = []
    for step in range(epochs * steps):
        before_step(schedule, step)
        optimizer.step()
        found.append([group["lr"] for group in optimizer.param_groups])
        if (step + 1) % steps == 0:
            after_epoch(schedule, values[step // steps], upwards=False)
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rate_is_the_closed_formula(name):
    found = [rate for (rate,) in rates_of(spec_of(name))]
    expected = [CLOSED[name](step, step // STEPS) for step in range(EPOCHS * STEPS)]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_training_follows_the_schedule_and_logs_the_rate_of_the_last_step_of_each_epoch(name, tmp_path):
    state, training = start(tmp_path, spec_of(name), min_delta=100.0, patience=None, epochs=EPOCHS)
    if name == "plateau":
        state.scheduler.threshold = 100.0  # no epoch is an improvement
    used, logged = [], []
    state.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))

    class Log:
        def epoch(self, facts, improved):
            logged.append(facts["learning_rate"])

        def steps(self, *_):
            pass

        def pictures(self, *_):
            pass

    training.log = Log()
    fit(state, training)
    expected = [CLOSED[name](step, step // STEPS) for step in range(EPOCHS * STEPS)]
    assert used == pytest.approx(expected, rel=1e-9)
    assert logged == used[STEPS - 1 :: STEPS]


def test_one_cycle_is_torchs_with_the_peak_of_each_group():
    found = rates_of(spec_of("one_cycle"), epochs=25, rates=(0.02, 0.005))
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    theirs = OneCycleLR(optimizer, [0.02, 0.005], total_steps=100, cycle_momentum=False)
    for rates in found:
        assert rates == pytest.approx([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        theirs.step()


def test_one_cycle_can_lower_the_momentum_at_the_peak():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule = build_schedule({"scheduler": {**spec_of("one_cycle"), "cycle_momentum": True}}, optimizer, "min", 100)
    found = []
    for step in range(100):
        before_step(schedule, step)
        found.append(optimizer.param_groups[0]["betas"][0])
    assert (found[0], min(found), found[-1]) == pytest.approx((0.95, 0.85, 0.95))
    assert found.index(min(found)) == 29


@pytest.mark.parametrize("total", [1, 2, 3, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.4, 1.0])
def test_warmup_ends_at_the_full_rate_and_the_cosine_at_its_end(total, warmup):
    found = [rate for (rate,) in rates_of({**spec_of("warmup_cosine"), "warmup": warmup}, 1, total)]
    rising = round(warmup * total)
    assert all(0 < rate <= RATE for rate in found)
    if rising:
        assert found[rising - 1] == pytest.approx(RATE)
        assert found[:rising] == sorted(found[:rising])
    if rising < total:
        assert found[-1] == pytest.approx(0.01 * RATE)
    rates_of(spec_of("one_cycle"), 1, total)  # does not run over its end


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("warmup_cosine", {"warmup": 1.5}, "warmup=1.5 is a share of all steps"),
        ("warmup_cosine", {"end": -1.0}, "end=-1.0 is a share of the learning rate"),
        ("one_cycle", {"div_factor": 0.0}, "div_factor=0.0 and final_div_factor=10000.0 must be above 0"),
        ("one_cycle", {"anneal_strategy": "exp"}, "scheduler.anneal_strategy=exp is unknown"),
        ("warmup_cosine", {"warmpu": 0.1}, "no key scheduler.warmpu"),
    ],
)
def test_unusable_options_are_refused(name, options, message):
    with pytest.raises(UsageError) as error:
        schedule_of({**spec_of(name), **options})
    assert message in str(error.value)


# intervals ----------------------------------------------------------------------------------------------------------


class ByStep(LRScheduler):
    interval = "step"

    def get_lr(self):
        return [rate / (1 + self.last_epoch) for rate in self.base_lrs]


class ByEpoch(ByStep):
    interval = "epoch"


class Unstated(LRScheduler):
    get_lr = ByStep.get_lr


class Knowing(Unstated):
    def __init__(self, optimizer, total_steps):
        self.total = total_steps
        super().__init__(optimizer)


class Misspelt(ByStep):
    interval = "steps"


class PlateauByStep(ReduceLROnPlateau):
    interval = "step"


@pytest.mark.parametrize(
    ("kind", "interval"), [(ByStep, "step"), (ByEpoch, "epoch"), (Unstated, "epoch"), (Knowing, "step")]
)
def test_a_schedule_of_ones_own_names_its_interval(kind, interval):
    found = [rate for (rate,) in rates_of({"_target_": f"tests.test_schedules.{kind.__name__}"})]
    places = [step if interval == "step" else step // STEPS for step in range(EPOCHS * STEPS)]
    assert found == pytest.approx([RATE / (1 + place) for place in places])


def test_a_misspelt_key_is_refused_before_data_are_opened():
    state = {**CONFIG, "data": {"root": "/nowhere"}, "scheduler": {**spec_of("one_cycle"), "pct": 0.1}}
    with pytest.raises(UsageError, match="there is no key scheduler.pct"):
        check_schedule(state)
    check_schedule({"scheduler": spec_of("one_cycle")})


def test_an_unknown_interval_is_refused():
    for kind, message in ((Misspelt, "interval=steps must be step or epoch"), (PlateauByStep, "must be epoch")):
        with pytest.raises(UsageError, match=message):
            schedule_of({"_target_": f"tests.test_schedules.{kind.__name__}"})


def test_torchs_one_cycle_gets_the_number_of_steps_unless_the_user_gives_it():
    spec = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1}
    assert len(set(map(tuple, rates_of(spec)))) == EPOCHS * STEPS
    assert len(set(map(tuple, rates_of({**spec, "total_steps": EPOCHS})))) == EPOCHS


# resuming -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """uninterrupted(name): the state after a run with this schedule that was never stopped."""

    @cache
    def run(name):
        whole, training = start(tmp_path_factory.mktemp("whole"), spec_of(name))
        fit(whole, training)
        return whole

    return run


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stop", [1, 6, 8])
def test_a_resumed_run_keeps_its_schedule(name, stop, tmp_path, uninterrupted):
    """Stopped after the first step, within an epoch, and after its last step."""
    spec, whole = spec_of(name), uninterrupted(name)
    part, training = start(tmp_path / "part", spec)
    with pytest.raises(Stopped):
        part.optimizer.register_step_post_hook(
            lambda *_: signal.raise_signal(signal.SIGTERM) if part.step + 1 == stop else None
        )
        fit(part, training)
    torch.manual_seed(99)  # another process
    resumed, training = start(tmp_path / "part", spec)
    resumed.restore(checkpoint.read(tmp_path / "part" / "checkpoints" / "last.ckpt"))
    assert resumed.step == stop
    fit(resumed, training)
    assert resumed.step == whole.step == EPOCHS * STEPS
    assert all(map(torch.equal, weights(whole), weights(resumed)))
    assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_the_schedule_goes_on_with_a_step_that_is_not_applied(lags, optimizer, tmp_path):
    """The position is the number of the step, even if the optimizer's state is restored one step later."""
    state, training = start(tmp_path, spec_of("warmup_cosine"))
    state.optimizer = getattr(torch.optim, optimizer)(state.separator.parameters(), lr=RATE)
    state.scheduler = WarmupCosine(state.optimizer, EPOCHS * STEPS, warmup=0.3)
    training.lags = lags
    good, bad = first_batch(training), first_batch(training)
    bad.sources[0, 0, 0, 7] = torch.inf
    used = []
    for step in range(8):
        train_step(state, training, bad if step in (0, 3, 4) else good)
        used.append(state.optimizer.param_groups[0]["lr"])
    assert used == pytest.approx([CLOSED["warmup_cosine"](step, 0) for step in range(8)])
    assert state.scheduler.last_epoch == 7


@pytest.mark.parametrize("name", ["cosine", "warmup_cosine", "one_cycle"])
def test_a_schedule_with_a_fixed_end_is_not_resumed_with_other_epochs(name, call, tmp_path):
    common = [*TINY_TOY, "run=r", f"scheduler={name}"]
    code, _, err = call(train, *common, "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err
    code, _, err = call(train, "run=r", "resume=true", "trainer.epochs=3", cwd=tmp_path)
    assert code == 2
    assert "the learning rate of this run ends at epoch 2, so trainer.epochs must stay 2; start another run" in err
    code, _, err = call(train, "run=r", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err


def test_the_log_has_the_rates_of_the_schedule(call, tmp_path):
    options = ["scheduler=warmup_cosine", "scheduler.warmup=0.5", "trainer.epochs=4", "trainer.steps_per_epoch=1"]
    code, _, err = call(train, *TINY_TOY, *options, "run=r", cwd=tmp_path)
    assert code == 0, err
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["learning_rate"] for line in lines]
    assert found == pytest.approx([5e-4, 1e-3, 1e-3 * (0.01 + 0.99 / 2), 1e-5])
