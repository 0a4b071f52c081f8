import copy
import math

import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.surgery import check_equal, random_like


class Add(nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, x, scale=1.0):
        return {"sum": x * scale + self.value, "rest": (x, torch.arange(3))}


def test_the_errors_are_the_largest_over_inputs_and_outputs():
    inputs = [torch.tensor([2.0, -4.0]), (torch.tensor([1.0]), 5.0), {"x": torch.tensor([8.0])}]
    found = check_equal(Add(), Add(0.5), inputs)
    assert found.inputs == 3
    assert found.max_abs == 0.5
    assert found.max_rel == 0.125  # 0.5 of 4, 0.5 of 5, 0.5 of 8
    assert (found.tolerance, found.dtype, found.equal) == (1e-3, "float32", False)
    assert check_equal(Add(), Add(0.5), inputs, tolerance=0.2).equal


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (0.0, math.nan, False),
        (math.nan, 0.0, False),
    ],
)
def test_what_is_not_finite_has_to_be_so_in_both(one, other, equal):
    assert check_equal(Add(one), Add(other), [torch.ones(2)]).equal is equal


def test_the_coarsest_dtype_decides_the_tolerance():
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16))
    found = check_equal(model, copy.deepcopy(model), [torch.randn(2, 4, dtype=torch.bfloat16)])
    assert (found.dtype, found.tolerance, found.max_abs) == ("bfloat16", 5e-2, 0.0)


def test_models_run_in_eval_mode_from_the_same_random_state_and_keep_their_modes():
    class Noisy(nn.Module):
        def forward(self, x):
            assert not self.training
            return x + torch.rand(4)

    model, state = Noisy(), torch.get_rng_state()
    assert check_equal(model, Noisy(), [torch.zeros(4)]).max_abs == 0.0
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_no_inputs_or_no_outputs_is_an_error_and_not_equality():
    with pytest.raises(ConfigError, match="no inputs"):
        check_equal(Add(), Add(), [])
    with pytest.raises(ConfigError, match="no floating tensor"):
        check_equal(nn.Flatten(), nn.Flatten(), [torch.ones(2, 2, dtype=torch.long)])


def test_random_inputs_can_still_be_taken():
    inputs = {
        "pixels": torch.zeros(2, 3),
        "tokens": torch.tensor([[5, 9, 7]]),
        "mask": torch.tensor([1, 1, 0]),
        "name": "x",
    }
    found = random_like(inputs)
    assert found["pixels"].shape == (2, 3)
    assert found["pixels"].std() > 0.1
    assert 5 <= int(found["tokens"].min()) <= int(found["tokens"].max()) <= 9
    assert torch.equal(found["mask"], inputs["mask"])
    assert found["name"] == "x"
    assert torch.equal(random_like(inputs)["pixels"], found["pixels"])
