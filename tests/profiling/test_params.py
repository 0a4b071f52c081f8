import torch
from torch import nn

from efftrain.profiling.params import count_parameters


def test_a_tied_tensor_counts_once():
    model = nn.ModuleList([nn.Linear(3, 5, bias=False), nn.Linear(3, 5)])
    model[1].weight = model[0].weight
    counts = count_parameters(model)
    assert counts.total == 15 + 5
    assert counts.trainable == 20


def test_frozen_and_buffers_and_bytes():
    model = nn.BatchNorm2d(4).half()
    model.bias.requires_grad_(False)
    counts = count_parameters(model)
    assert (counts.total, counts.trainable, counts.trainable_pct) == (8, 4, 50.0)
    assert counts.buffers == 4 + 4 + 1
    assert counts.model_bytes == 2 * 16 + 8  # half precision, and an int64 counter


def test_a_model_without_parameters_has_no_share():
    assert count_parameters(nn.ReLU()).trainable_pct == 0.0


def test_the_meta_device_will_do():
    with torch.device("meta"):
        model = nn.Linear(1000, 1000)
    assert count_parameters(model).total == 1_001_000
