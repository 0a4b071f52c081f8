import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError, MachineError
from efftrain.measure.stopwatch import Stopwatch
from efftrain.measure.throughput import is_out_of_memory, measure_throughput, of_size
from tests.measure.slow_models import FakeClock, Slow


@pytest.fixture
def now():
    return FakeClock()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Spares each test the look at what else runs on the machine."""
    monkeypatch.setattr(Stopwatch, "is_disturbed", lambda self: False)


def test_the_best_point_has_the_size_that_gave_it_and_all_points_stay(now):
    # 10 ms a call and 1 ms a sample: 1 / 11 ms, 4 / 14 ms, 16 / 26 ms
    found = measure_throughput(
        Slow(now, 0.010, 0.001), torch.zeros(2, 3), batch_sizes=[16, 1, 4], clock=now
    )
    rates = {point.batch_size: point.samples_per_s for point in found.points}
    assert rates == {
        1: pytest.approx(1 / 0.011),
        4: pytest.approx(4 / 0.014),
        16: pytest.approx(16 / 0.026),
    }
    assert (found.best.batch_size, found.end) == (16, "all")
    written = found.to_dict()
    assert (written["batch_size"], written["end"]) == (16, "all")
    assert written["samples_per_s"] == pytest.approx(16 / 0.026)
    assert [point["batch_size"] for point in written["points"]] == [1, 4, 16]


def test_the_largest_size_is_not_always_the_best(now):
    class Cached(Slow):
        def forward(self, x):
            now.now += 1.0 * (len(x) > 4)  # from here on it no longer fits into a cache
            return super().forward(x)

    found = measure_throughput(
        Cached(now, 0.010), torch.zeros(1, 3), batch_sizes=[1, 4, 8], clock=now
    )
    assert found.best.batch_size == 4


class Full(nn.Module):
    """Runs out of memory above some batch size."""

    def __init__(self, limit, error):
        super().__init__()
        self.limit, self.error, self.sizes = limit, error, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise self.error
        return x


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 4000000000000 bytes."
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_ends_the_sweep_with_what_it_has(error):
    model = Full(2, error)
    found = measure_throughput(model, torch.zeros(1, 3), batch_sizes=[1, 2, 4, 8])
    assert [point.batch_size for point in found.points] == [1, 2]
    assert found.end == "out of memory"
    assert max(model.sizes) == 4


def test_what_the_cpus_allocator_raises_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_model_that_never_fits_is_an_error():
    with pytest.raises(MachineError, match="out of memory on cpu with a batch of 4"):
        measure_throughput(Full(2, MemoryError()), torch.zeros(1, 3), batch_sizes=[4, 8])


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        measure_throughput(Full(0, RuntimeError("shapes do not fit")), torch.zeros(1, 3))


def test_the_sweep_ends_before_it_would_take_too_long(now):
    # 1 s a sample: size 1 takes 2 + 5 runs of 1 s, size 2 14 s; size 4 would take 28 of the 10 left
    model = Slow(now, sample_s=1.0)
    found = measure_throughput(
        model, torch.zeros(1, 3), batch_sizes=[1, 2, 4], budget_s=31, clock=now
    )
    assert [point.batch_size for point in found.points] == [1, 2]
    assert found.end == "out of time"
    assert 4 not in model.sizes


@pytest.mark.parametrize("when", [[False, False], [True, False], [False, True]])
def test_other_programs_before_or_after_are_told(now, monkeypatch, when):
    disturbed = iter(when)
    monkeypatch.setattr(Stopwatch, "is_disturbed", lambda self: next(disturbed))
    found = measure_throughput(Slow(now, 0.1), torch.zeros(1, 3), batch_sizes=[1], clock=now)
    assert found.to_dict()["disturbed"] is any(when)


def test_progress_is_told_of_each_size(now):
    seen = []
    measure_throughput(
        Slow(now, 0.1),
        torch.zeros(1, 3),
        batch_sizes=[1, 2],
        progress=lambda done, total: seen.append((done, total)),
        clock=now,
    )
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("sizes", [[], [0, 1]])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ConfigError, match="above 0"):
        measure_throughput(nn.Linear(3, 3), torch.zeros(1, 3), batch_sizes=sizes)


def test_a_batch_of_another_size_repeats_samples_in_memory_of_their_own():
    batch = {"x": torch.tensor([[1], [2]]), "scale": torch.tensor(3.0), "n": 7}
    found = of_size(batch, 5)
    assert found["x"].tolist() == [[1], [2], [1], [2], [1]]
    assert found["x"].untyped_storage().nbytes() == 5 * 8
    assert (found["scale"].item(), found["n"]) == (3.0, 7)
    assert of_size(batch, 1)["x"].tolist() == [[1]]
