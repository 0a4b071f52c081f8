import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.measure.device import device_name
from efftrain.measure.latency import measure_latency, measure_step
from efftrain.measure.layer_times import measure_layers
from efftrain.measure.stopwatch import Stopwatch
from efftrain.measure.throughput import measure_throughput
from tests.measure.slow_models import FakeClock, Slow


@pytest.fixture
def now():
    return FakeClock()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Spares each test the look at what else runs on the machine."""
    monkeypatch.setattr(Stopwatch, "is_disturbed", lambda self: False)


class Steps(nn.Module):
    """Takes 1, 2, 3, … ms."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.calls = clock, 0

    def forward(self, x):
        self.calls += 1
        self.clock.now += self.calls / 1000
        return x


def test_percentiles_are_of_the_runs_after_the_warmup(now):
    # warm-up takes 1 to 10 ms, the runs 11 to 111 ms: of 101 values the k-th percentile is 11 + k
    found = measure_latency(Steps(now), torch.zeros(1, 2), runs=101, warmup=10, clock=now)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (
        pytest.approx(61),
        pytest.approx(101),
        pytest.approx(110),
    )
    assert (found.runs, found.warmup) == (101, 10)


def test_latency_is_of_one_sample_whatever_the_batch(now):
    model = Slow(now, sample_s=0.002)
    found = measure_latency(model, torch.zeros(64, 3), warmup=1, clock=now)
    assert set(model.sizes) == {1}
    assert found.samples == 1
    assert found.runs == 100
    assert found.p50_ms == pytest.approx(2)


def test_where_it_was_measured_stands_beside_the_figure(now):
    written = measure_latency(Slow(now, 0.001), torch.zeros(1, 3), runs=1, clock=now).to_dict()
    assert written["device"] == device_name(torch.device("cpu"))
    assert written["threads"] == torch.get_num_threads()
    assert written["runs"] == 1


@pytest.mark.parametrize("when", [[False, False], [True, False], [False, True]])
def test_other_programs_before_or_after_are_told(now, monkeypatch, when):
    disturbed = iter(when)
    monkeypatch.setattr(Stopwatch, "is_disturbed", lambda self: next(disturbed))
    found = measure_latency(Slow(now, 0.001), torch.zeros(1, 3), runs=1, clock=now)
    assert found.to_dict()["disturbed"] is any(when)


def test_progress_is_told_of_each_run_and_its_own_time_does_not_count(now):
    seen = []

    def progress(done, total):
        seen.append((done, total))
        now.now += 1000

    found = measure_latency(
        Slow(now, 0.001), torch.zeros(1, 3), runs=3, warmup=2, progress=progress, clock=now
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert found.p99_ms == pytest.approx(1)


class Touchy(nn.Module):
    """Has everything that a measurement could leave changed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen_norm = nn.BatchNorm2d(4).eval()
        self.drop = nn.Dropout(0.5)
        self.modes = []

    def forward(self, image):
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return self.drop(self.frozen_norm(self.norm(self.conv(image)))).mean() + torch.rand(())


def everything(model):
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": {path: module.training for path, module in model.named_modules()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "random": torch.get_rng_state(),
    }


def assert_same(before, after):
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_inference_runs_in_eval_and_inference_mode():
    model = Touchy()
    measure_latency(model, torch.rand(2, 3, 8, 8), runs=2, warmup=1)
    assert model.modes == [(False, True)] * 3


MEASUREMENTS = {
    "latency": lambda model, batch: measure_latency(model, batch, runs=2, warmup=1),
    "throughput": lambda model, batch: measure_throughput(model, batch, batch_sizes=[1]),
    "layers": lambda model, batch: measure_layers(model, batch, runs=2, warmup=1),
    "step": lambda model, batch: measure_step(
        model, batch, optimizer=torch.optim.AdamW, runs=2, warmup=1
    ),
}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_measurement_leaves_the_model_and_random_numbers_as_they_were(measure):
    model, batch = Touchy(), torch.rand(2, 3, 8, 8)
    model(batch).backward()
    before = everything(model)
    measure(model, batch)
    assert_same(before, everything(model))


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_failing_model_is_left_as_it_was_too(measure):
    model, batch = Touchy(), torch.rand(2, 5, 8, 8)
    before = everything(model)
    with pytest.raises(RuntimeError, match="channels"):
        measure(model, batch)
    assert_same(before, everything(model))


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_model_without_values_is_refused(measure):
    with torch.device("meta"):
        model, batch = nn.Linear(2, 2), torch.rand(2, 2)
    with pytest.raises(ConfigError, match="meta device"):
        measure(model, batch)


@pytest.mark.parametrize("measure", [measure_latency, measure_step, measure_layers])
def test_no_runs_are_refused(measure):
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        measure(nn.Linear(2, 2), torch.rand(1, 2), runs=0)


def test_a_step_takes_the_whole_batch_forward_loss_and_update(now):
    ran = []

    def loss(output):
        ran.append(("loss", output.shape[0]))
        now.now += 0.010
        return output.sum()

    class Optimizer(torch.optim.SGD):
        def step(self):
            ran.append(("update", [p.grad is not None for p in self.param_groups[0]["params"]]))
            now.now += 0.100

    model = Slow(now, sample_s=0.001)
    found = measure_step(
        model,
        torch.zeros(4, 3),
        loss,
        lambda parameters: Optimizer(parameters, lr=1.0),
        runs=2,
        warmup=0,
        clock=now,
    )
    assert found.p50_ms == pytest.approx(4 + 10 + 100)
    assert (found.samples, found.runs) == (4, 2)
    assert ran == [("loss", 4), ("update", [True])] * 2


def test_a_step_with_nothing_to_train_is_timed_as_far_as_it_goes(now):
    model = nn.Sequential(nn.Linear(3, 3), Slow(now, sample_s=0.001)).requires_grad_(False)
    found = measure_step(
        model, torch.zeros(2, 3), optimizer=torch.optim.AdamW, runs=1, warmup=0, clock=now
    )
    assert found.p50_ms == pytest.approx(2)


def test_keyword_batches_and_a_models_own_loss_will_do(now):
    class Output(dict):
        loss = property(lambda self: self["loss"])

    class Speaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 2)

        def forward(self, input_ids, labels=None):
            sizes.append(len(input_ids))
            return Output(loss=self.table(input_ids).sum())

    sizes = []
    batch = {"input_ids": torch.zeros(4, 5, dtype=torch.long), "labels": torch.zeros(4)}
    measure_latency(Speaks(), batch, runs=1, warmup=0, clock=now)
    measure_step(Speaks(), batch, runs=1, warmup=0, clock=now)
    assert sizes == [1, 4]
