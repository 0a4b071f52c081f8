"""Norms as a training leaves them: scales, shifts and statistics that are neither 0 nor 1."""

import pytest
import torch


def _train(model: torch.nn.Module) -> torch.nn.Module:
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if "norm" not in type(module).__name__.lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            centre = 1.0 if name == "weight" else 0.0
            noise = torch.rand(parameter.shape, generator=draw)
            parameter.data = (centre + noise - 0.5).to(parameter.dtype)
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=draw))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=draw))
    return model.eval()


@pytest.fixture
def trained():
    """Give every norm of a model such values, in place."""
    return _train
