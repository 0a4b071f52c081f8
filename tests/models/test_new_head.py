import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.models.new_head import replace_head


def test_a_linear_head_is_replaced_and_the_rest_is_not():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 10, bias=False))
    first = model[0].weight
    assert replace_head(model, 5) == "2"
    assert model[2].weight.shape == (5, 4)
    assert model[2].bias is None
    assert model[0].weight is first


def test_a_head_of_the_right_width_stays():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 10))
    head = model[1]
    assert replace_head(model, 10) is None
    assert model[1] is head


def test_the_new_head_has_the_old_ones_dtype():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 10)).to(torch.bfloat16)
    replace_head(model, 2)
    assert model[1].weight.dtype == torch.bfloat16


def test_a_head_that_cannot_be_widened_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 10, 3))
    with pytest.raises(ConfigError, match=r"head 1 is a Conv2d.*model\.num_classes=null"):
        replace_head(model, 2)
