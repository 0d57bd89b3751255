"""The CPU, a pretended GPU and this machine's GPU: the same results, and no step in which the host waits."""

from contextlib import nullcontext

import pytest
import torch

from separate.clustering import kmeans
from separate.config import TrainerConfig, shipped
from separate.data.example import Example
from separate.data.mixing.augmentation import Change
from separate.data.mixing.channels import ChannelMatrix
from separate.data.mixing.equaliser import BANDS, Equaliser
from separate.data.mixing.noise import Noise
from separate.data.mixing.raw_batch import RawBatch, collate
from separate.data.mixing.reverb import Reverb
from separate.data.mixing.stretch import Stretch, StretchPlan
from separate.evaluation.scores import score
from separate.losses.permutation import best_permutation
from separate.parts import build_loss, build_separator
from separate.stft import STFT
from separate.training import distributed, setup, trainer, validation
from separate.training.state import State, Training
from separate.training.step import flush, train_step
from separate.training.trainer import fit
from tests.pretend import CUDA
from tests.test_table import cells
from tests.test_trainer import CONFIG
from tests.tiny import MODELS, config_of, section

CPU = torch.device("cpu")
EMBEDDING = ("deep_clustering", "chimera", "attractor")


def own_loss(model: str) -> str:
    return next((next(iter(default.values())) for default in shipped("model")[model].get("defaults", [])), "tpsa")


# (model, loss, interchangeable): each model under its own loss, and each loss with one model
STEPS = [
    *((model, own_loss(model), True) for model in MODELS),
    *((model, own_loss(model), False) for model in EMBEDDING),
    *(("blstm", loss, loss == "mixit") for loss in sorted(shipped("loss")) if cells("blstm", loss, loss == "mixit")),
    *(("attractor", loss, False) for loss in ("dc_weighted", "dc_whitened")),
]


def drawn_of(sources: int = 2) -> RawBatch:
    generator = torch.Generator().manual_seed(1)
    signals = 0.1 * torch.randn(2, sources, 1, 320, generator=generator)
    return collate([Example("noise", signal.numpy()) for signal in signals])


def config_for(model: str, loss: str, interchangeable: bool) -> dict:
    own = str(next(iter(shipped("loss")[loss].get("defaults", [{"": "tpsa"}])[0].values())))
    fitting = cells(model, loss, interchangeable)
    target = section("target", own if own in fitting else fitting[0])
    outputs = 4 if loss == "mixit" else None
    return config_of(model, interchangeable, loss=section("loss", loss), target=target, outputs=outputs)


def steps_on(device, config, folder, waits, count=2):
    """The metrics of steps on one batch, the places where the host waited after the first, and the separator."""
    torch.manual_seed(0)
    separator = build_separator(config)
    loss = build_loss(config, separator).to(device)
    optimizer = torch.optim.Adam(separator.to(device).train().parameters(), lr=1e-3)
    state = State(separator, optimizer, None, torch.amp.GradScaler(device.type, enabled=False))
    options = TrainerConfig(precision="fp32")
    training = Training(
        loss=loss,
        train=[],
        valid=[],
        options=options,
        batch_size=2,
        seed=0,
        workers=0,
        folder=folder,
        config={},
        lags=device.type != "cpu",
    )
    drawn = drawn_of(len(config["data"]["sources"]))
    found = [train_step(state, training, drawn)]
    with waits() as waited:
        found += [train_step(state, training, drawn) for _ in range(count - 1)]
    found.append(flush(state, training))
    return [metrics for metrics in found if metrics], waited, separator


def test_every_model_and_every_loss_is_among_the_steps():
    assert {model for model, _, _ in STEPS} == set(shipped("model"))
    assert {loss for _, loss, _ in STEPS} == set(shipped("loss"))


@pytest.mark.parametrize(("model", "loss", "interchangeable"), STEPS)
def test_a_step_agrees_with_the_cpu_and_waits_once_for_the_step_before(
    model, loss, interchangeable, device, waits, tmp_path
):
    config = config_for(model, loss, interchangeable)
    expected, _, _ = steps_on(CPU, config, tmp_path, lambda: nullcontext([]))
    found, waited, _ = steps_on(device, config, tmp_path, waits)
    assert waited in ([], ["event"])
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("model", MODELS)
def test_scores_and_chunks_agree_with_the_cpu(model, device):
    torch.manual_seed(0)
    separator = build_separator(config_of(model, interchangeable=True)).eval()
    recording = 0.1 * torch.randn(500, generator=torch.Generator().manual_seed(2))
    found = []
    for place in (CPU, device):
        separator.to(place)
        batch = drawn_of().to(place, separator.stft)
        with torch.inference_mode():
            scores = score(separator.separate(batch).estimates, batch.sources, batch.mixture, interchangeable=True)
            stems = separator(recording, 8000, chunk=0.04, overlap=0.01)
        found.append([torch.stack(list(scores.values())).cpu(), *stems.values()])
    for ours, theirs in zip(*found, strict=True):
        if model == "deep_clustering" and device.type == "cuda" and torch.cuda.is_available():
            # a bin halfway between two centres goes either way
            assert (theirs - ours).square().sum() < 1e-2 * ours.square().sum()
        else:
            torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("model", MODELS)
def test_the_host_waits_only_for_chunks_and_for_k_means(model, pretended):
    separator = build_separator(config_of(model, interchangeable=True)).eval().to(CUDA)
    batch = drawn_of().to(CUDA, separator.stft)
    with torch.inference_mode():
        for _ in range(2):  # the first call fills what is cached on the device
            pretended.waits.clear()
            score(separator.separate(batch).estimates, batch.sources, batch.mixture, interchangeable=True)
        separated = pretended.waits.copy()
        separator(torch.randn(500), 8000, chunk=0.04, overlap=0.01)
    clustered = {"numerics.wait_for"} if model in ("deep_clustering", "attractor") else set()
    assert set(separated) == clustered
    chunks = [where for where in pretended.waits if where != "numerics.wait_for"]
    assert chunks == ["separator.span", "separator.span"] * 2  # to the device and back, for each chunk


def test_a_whole_training_agrees_with_the_cpu(device, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "choose_device", torch.device)
    best = []
    for place in (CPU, device):
        folder = tmp_path / str(len(best))
        options = {**CONFIG["trainer"], "precision": "fp32", "epochs": 2, "steps_per_epoch": 2, "valid_steps": 1}
        state, training = setup.prepare({**CONFIG, "device": str(place), "trainer": options}, folder)
        best.append(fit(state, training))
        assert (state.step, state.epoch, state.pending) == (4, 2, None)
        state.restore(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True))
    assert best[1] == pytest.approx(best[0], rel=1e-3)


def test_all_loaders_of_a_training_pin_memory_for_a_gpu(device, tmp_path, monkeypatch):
    """The number of workers depends on it: of statistics, training and validation."""
    told = []

    def load(items, steps, workers, pin):
        told.append(pin)
        return trainer_load(items, steps, workers, pin)

    trainer_load = trainer.load
    monkeypatch.setattr(distributed, "choose_device", torch.device)
    for module in (setup, trainer, validation):
        monkeypatch.setattr(module, "load", load)
    options = {**CONFIG["trainer"], "precision": "fp32", "epochs": 1, "steps_per_epoch": 1, "valid_steps": 1}
    model = {**CONFIG["model"], "normalisation": "whiten"}
    state, training = setup.prepare({**CONFIG, "device": str(device), "trainer": options, "model": model}, tmp_path)
    setup.measure(state, training)
    fit(state, training)
    assert told == [device.type == "cuda"] * 3


@pytest.mark.parametrize("shape", [(4, 4), (5, 5), (7, 4), (9, 9)])
def test_sources_are_paired_as_on_the_cpu_without_waiting(shape, device, waits):
    costs = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    costs[2, 0, 0] = torch.nan
    moved = costs.to(device)
    best_permutation(moved)  # fills its cache on the device
    with waits() as waited:
        found = best_permutation(moved)
    assert waited == []
    assert torch.equal(found.cpu(), best_permutation(costs))


def test_beyond_sixteen_estimates_the_host_waits_for_the_costs(pretended):
    costs = torch.randn(2, 17, 17, generator=torch.Generator().manual_seed(0))
    moved = costs.to(CUDA)
    pretended.waits.clear()
    assert torch.equal(best_permutation(moved).cpu(), best_permutation(costs))
    assert set(pretended.waits) == {"permutation._hungarian", "the test"}


def test_clusters_agree_with_the_cpu(device):
    points = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    points[:, :100] += 4
    for clusters in (2, 5):
        expected = kmeans(points, clusters)
        found = kmeans(points.to(device), clusters).cpu()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # with more clusters than points many of the best are alike, and rounding chooses
    inertia = [torch.cdist(points, kmeans(x, 250).cpu()).amin(2).square().sum() for x in (points, points.to(device))]
    assert inertia[1].item() == pytest.approx(inertia[0].item(), rel=0.1)


def test_a_batch_is_changed_and_mixed_as_on_the_cpu_without_waiting(device, waits):
    generator = torch.Generator().manual_seed(0)
    drawn = drawn_of()
    drawn.recorded, drawn.is_sum = 0.1 * torch.randn(2, 1, 320, generator=generator), torch.tensor([True, False])
    drawn.sample_rate = 8000
    plans = [StretchPlan.of(240, 1.0, 1.2, 2.0), StretchPlan.of(240, 1.1, 0.9, -1.0)]  # of at most 320 samples
    curves = torch.randn(2, 2, BANDS, generator=generator)
    responses = torch.randn(2, 2, 1, 40, generator=generator)
    spans = torch.tensor([[[[0, 10]], [[3, 4]]], [[[5, 6]], [[0, 40]]]])
    matrices = torch.rand(2, 2, 1, 1, generator=generator)
    noise, snr = torch.randn(2, 1, 240, generator=generator), torch.tensor([10.0, torch.inf])
    drawn.changes = [
        Change(Stretch, {"plan": plans}),
        Change(Equaliser, {"curves": curves}),
        Change(Reverb, {"responses": responses, "reference_spans": spans}),
        Change(ChannelMatrix, {"matrices": matrices}),
        Change(Noise, {"noise": noise, "snr": snr}),
    ]
    expected = drawn.to(CPU, STFT(64, 32))
    stft = STFT(64, 32).to(device)
    with waits() as waited:
        found = drawn.to(device, stft)
    assert waited == []
    assert expected.sources.shape == (2, 2, 1, 240)
    for name in ("mixture", "sources"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-4, atol=1e-5)


def test_the_pretended_device_refuses_what_a_gpu_refuses_and_records_where_the_host_waits(pretended):
    x = torch.randn(3).to(CUDA)
    pretended.waits.clear()
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        x + torch.randn(3)
    assert pretended.waits == []
    for wait in (x.sum().item, x.cpu, (x > 0).nonzero, lambda: x[x > 0], lambda: bool((x > 0).any())):
        pretended.waits.clear()
        wait()
        assert set(pretended.waits) == {"the test"}
    early = x.to("cpu", non_blocking=True)
    assert early.isnan().all()  # nothing waited for the copy
