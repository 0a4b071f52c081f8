import pytest
import torch
from torch import nn

from efftrain.measure.layer_times import measure_layers
from efftrain.profiling.count import count_forward
from tests.measure.slow_models import FakeClock, Slow


@pytest.fixture
def now():
    return FakeClock()


class Block(nn.Module):
    """Takes time itself, between and after its children."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.first, self.second = Slow(clock, 0.010), Slow(clock, 0.020)

    def forward(self, x):
        x = self.first(x)
        self.clock.now += 0.001
        x = self.second(self.second(x))
        self.clock.now += 0.002
        return x


def test_a_modules_time_is_its_own_without_its_childrens(now):
    found = measure_layers(nn.Sequential(Block(now)), torch.zeros(1, 3), runs=3, clock=now)
    assert found == {
        "": pytest.approx(0, abs=1e-9),
        "0": pytest.approx(3),
        "0.first": pytest.approx(10),
        "0.second": pytest.approx(2 * 20),  # both calls
    }


def test_a_module_in_two_places_goes_by_its_first_name(now):
    shared = Slow(now, 0.005)
    found = measure_layers(_Both(shared), torch.zeros(1, 3), runs=1, clock=now)
    assert found["left"] == pytest.approx(10)
    assert "right" not in found


class _Both(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.left = self.right = shared
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        return self.right(self.left(x))


def test_a_module_that_is_not_called_is_not_there(now):
    assert "unused" not in measure_layers(_Both(Slow(now)), torch.zeros(1, 3), runs=1, clock=now)


def test_the_median_run_counts_and_warmup_does_not(now):
    class Uneven(nn.Module):
        def forward(self, x):
            now.now += times.pop(0)
            return x

    times = [9.0, 9.0, 0.001, 0.003, 0.500]
    found = measure_layers(Uneven(), torch.zeros(1, 3), runs=3, warmup=2, clock=now)
    assert found[""] == pytest.approx(3)


def test_paths_are_those_of_the_count():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    batch = torch.zeros(2, 5, 8)
    counted = {entry.path for entry in count_forward(model, batch).entries if entry.macs}
    assert counted == {"self_attn", "linear1", "linear2"}
    assert counted <= measure_layers(model, batch, runs=1, warmup=0).keys()


def test_a_module_that_fails_and_is_caught_does_not_take_its_parents_time(now):
    class Fails(nn.Module):
        def forward(self, x):
            raise ArithmeticError

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails = Fails()

        def forward(self, x):
            try:
                self.fails(x)
            except ArithmeticError:
                now.now += 0.004
            return x

    found = measure_layers(Catches(), torch.zeros(1, 3), runs=1, clock=now)
    assert found == {"": pytest.approx(4), "fails": pytest.approx(0, abs=1e-9)}
