"""MACs by several counters, side by side with the truth.

python scripts/benchmarks/counters.py

Prints two Markdown tables: one forward pass of one sample in eval mode, and one training step with
everything or only the norms trainable. The truth is counted layer by layer from the definition of a
convolution and a linear layer, and by the formula of the paper for ViT. A counter that is not
installed is left out, and said so.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from efftrain.profiling import count_forward, count_step

MODELS = (
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
)
NORMS = (nn.BatchNorm2d, nn.LayerNorm)

# ViT-B/16 at 224 (Dosovitskiy et al. 2021): 197 tokens of width 768, 12 blocks, MLP of 4 x width.
_PATCHES = 196 * 768 * 3 * 16 * 16
_LINEAR = 197 * 768 * 768 * (3 + 1 + 4 + 4)
_ATTENTION = 2 * 197 * 197 * 768
_HEAD = 768 * 1000


def vit_truth(norms_alone: bool) -> tuple[int, int]:
    """Forward and backward; attention has two gradients, and the image none."""
    forward = _PATCHES + 12 * (_LINEAR + _ATTENTION) + _HEAD
    inputs = 12 * (_LINEAR + 2 * _ATTENTION) + _HEAD
    weights = 0 if norms_alone else _PATCHES + 12 * _LINEAR + _HEAD
    return forward, inputs + weights


def truth(name: str, model: nn.Module, batch: Tensor, norms_alone: bool = False) -> tuple[int, int]:
    """Multiply-accumulates of forward and of backward."""
    if name == "vit_b_16":
        forward, backward = vit_truth(norms_alone)
        return batch.shape[0] * forward, batch.shape[0] * backward
    forward = backward = 0

    def layer(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal forward, backward
        if isinstance(module, nn.Conv2d):
            each = module.in_channels // module.groups * module.kernel_size[0] ** 2
        elif isinstance(module, nn.Linear):
            each = module.in_features
        else:
            return
        macs = output.numel() * each
        forward += macs
        backward += macs * (int(module.weight.requires_grad) + int(args[0].requires_grad))

    hooks = [module.register_forward_hook(layer) for module in model.modules()]
    model(batch)
    for hook in hooks:
        hook.remove()
    return forward, backward


def with_fvcore(model: nn.Module, image: Tensor) -> float:
    """What fvcore calls FLOPs are multiply-accumulates."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, image)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def with_torch(model: nn.Module, image: Tensor) -> float:
    """Two FLOPs are one multiply-accumulate."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() / 2


def with_torchinfo(model: nn.Module, image: Tensor) -> float:
    """Its `total_mult_adds`."""
    import torchinfo

    return torchinfo.summary(model, input_data=image, verbose=0).total_mult_adds


def with_ptflops(model: nn.Module, image: Tensor) -> float:
    """Its default backend."""
    import ptflops

    return ptflops.get_model_complexity_info(
        model,
        tuple(image.shape[1:]),
        as_strings=False,
        print_per_layer_stat=False,
        verbose=False,
    )[0]


def with_calflops(model: nn.Module, image: Tensor) -> float:
    """Its MACs, of forward."""
    import calflops

    return calflops.calculate_flops(
        model, args=[image], print_results=False, output_as_string=False
    )[1]


def with_efftrain(model: nn.Module, image: Tensor) -> float:
    """Ours."""
    return count_forward(model, image).macs()


# Calflops last: after a failure it leaves torch's functions patched.
COUNTERS: dict[str, Callable[[nn.Module, Tensor], float]] = {
    "efftrain": with_efftrain,
    "fvcore": with_fvcore,
    "torch": with_torch,
    "torchinfo": with_torchinfo,
    "ptflops": with_ptflops,
    "calflops": with_calflops,
}


def installed() -> dict[str, str]:
    """Versions of the counters that are there."""
    found: dict[str, str] = {}
    for name in COUNTERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def error(found: float, true: float) -> str:
    """In per cent, exact ones without a sign."""
    return "exact" if found == true else f"{100 * (found / true - 1):+.1f} %"


def ask(counter: str, model: nn.Module, image: Tensor, true: int) -> str:
    """One cell: a counter's error, or the error that it stopped with."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return error(COUNTERS[counter](model, image), true)
    except Exception as problem:  # a foreign tool may raise anything
        return type(problem).__name__


def forward_table(versions: dict[str, str]) -> None:
    """Errors of one forward pass."""
    print("Forward, one sample, eval mode: error against the truth\n")
    print("| model | MACs |", " | ".join(f"{n} {v}" for n, v in versions.items()), "|")
    print("| --- " * (2 + len(versions)) + "|")
    cells: dict[str, list[str]] = {name: [] for name in MODELS}
    models = {name: torchvision.models.get_model(name).eval() for name in MODELS}
    image = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        true = {name: truth(name, models[name], image)[0] for name in MODELS}
    for counter in versions:
        for name in MODELS:
            cells[name].append(ask(counter, models[name], image, true[name]))
    for name in MODELS:
        print(f"| {name} | {true[name]:,} |", " | ".join(cells[name]), "|")


def training_table() -> None:
    """Errors of forward and backward, of the counters that run backward, and of the rule of three."""
    print("\nForward and backward, two samples, train mode: error against the truth\n")
    print("| model | trains | MACs | full / this | efftrain | torch | 3 x forward |")
    print("| --- " * 7 + "|")
    for name in MODELS:
        with torch.device("meta"):
            model, batch = torchvision.models.get_model(name), torch.zeros(2, 3, 224, 224)
        full = 0
        for norms_alone in (False, True):
            for module in model.modules():
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(not norms_alone or isinstance(module, NORMS))
            forward, backward = truth(name, model, batch, norms_alone)
            true = forward + backward
            full = full or true
            count = count_step(model, batch)
            ours = count.macs("forward", "backward_inputs", "backward_weights")
            with FlopCounterMode(display=False) as counter:
                model(batch).sum().backward()
            trains = "norms" if norms_alone else "all"
            shown = (ours, counter.get_total_flops() / 2, 3 * forward)
            print(
                f"| {name} | {trains} | {true:,} | {full / true:.2f} |",
                " | ".join(error(found, true) for found in shown),
                "|",
            )


def main() -> None:
    """Print both tables."""
    warnings.simplefilter("ignore")  # of foreign tools, about torch.jit and their own future
    logging.disable(logging.WARNING)
    versions = installed()
    missing = [name for name in COUNTERS if name not in versions]
    if missing:
        print(f"Not installed, left out: {', '.join(missing)}\n")
    forward_table(versions)
    training_table()


if __name__ == "__main__":
    main()
