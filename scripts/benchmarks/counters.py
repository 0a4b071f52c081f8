"""MACs by several counters, side by side with the truth.

pip install -c constraints.txt torchinfo ptflops calflops
python scripts/benchmarks/counters.py

Prints two Markdown tables: one forward pass of one sample in eval mode, and one training step with
everything or only the norms trainable. The truth is counted layer by layer from the definition of a
convolution and a linear layer; attention, recurrent layers and language models are counted by the
formulas of their papers. A counter that is not installed is left out, and said so.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from efftrain.profiling import count_forward, count_step

NORMS = (nn.BatchNorm2d, nn.LayerNorm)
CONVOLUTIONAL = (
    "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0",
    "convnext_tiny",
)  # fmt: skip

# ViT-B/16 at 224 (Dosovitskiy et al. 2021): 197 tokens of width 768, 12 blocks, MLP of 4 x width.
_PATCHES = 196 * 768 * 3 * 16 * 16
_LINEAR = 197 * 768 * 768 * (3 + 1 + 4 + 4)
_ATTENTION = 2 * 197 * 197 * 768
_HEAD = 768 * 1000

# Swin-T at 224 (Liu et al. 2021): of each stage tokens, width and blocks; windows of 49 tokens. Its four
# projections are called as functions, on no module of their own.
_SWIN = sum(
    blocks * tokens * (4 * width**2 + 2 * 49 * width)
    for tokens, width, blocks in ((56**2, 96, 2), (28**2, 192, 2), (14**2, 384, 6), (7**2, 768, 2))
)

# BERT-base (Devlin et al. 2019) on 128 tokens: 4 projections, attention, MLP of 4 x width; the pooler.
_BERT = 12 * (128 * 12 * 768**2 + 2 * 128**2 * 768) + 768**2

# A LLaMA of 6 layers on 256 tokens, whose 16 heads share 4 keys (Ainslie et al. 2023).
_LLAMA = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6,
    "num_attention_heads": 16, "num_key_value_heads": 4,
}  # fmt: skip
_LLAMA_MACS = 256 * (
    6 * (2 * 1024**2 + 2 * 1024 * 256 + 2 * 256 * 1024 + 3 * 1024 * 2816) + 1024 * 32000
)

# Two layers in both directions, 50 steps of 256 features, states of 512: the gates' matrices.
_GATE = 50 * 2 * 512 * ((256 + 512) + (2 * 512 + 512))

FORWARD = (
    *CONVOLUTIONAL, "swin_t", "vit_b_16", "timm vit_base_patch16", "BERT-base",
    "LLaMA, shared keys", "LSTM", "GRU",
)  # fmt: skip
TRAINING = (*CONVOLUTIONAL, "vit_b_16")


class First(nn.Module):
    """The first of a model's outputs: counters that trace need a tensor."""

    def __init__(self, model: nn.Module) -> None:
        """Hold the model."""
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Tensor:
        """Run it."""
        return self.model(batch)[0]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model without pretrained weights, in eval mode, and one sample."""
    image, words = torch.zeros(1, 3, 224, 224), torch.zeros(1, 256, dtype=torch.long)
    if name == "timm vit_base_patch16":
        import timm

        return timm.create_model("vit_base_patch16_224").eval(), image
    if name == "BERT-base":
        from transformers import BertConfig, BertModel

        return First(BertModel(BertConfig())).eval(), words[:, :128]
    if name == "LLaMA, shared keys":
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(**_LLAMA, use_cache=False)
        return First(LlamaForCausalLM(config)).eval(), words
    if name in ("LSTM", "GRU"):
        layer = getattr(nn, name)(256, 512, num_layers=2, bidirectional=True, batch_first=True)
        return First(layer).eval(), torch.zeros(1, 50, 256)
    return torchvision.models.get_model(name).eval(), image


FORMULAS = {
    "vit_b_16": _PATCHES + 12 * (_LINEAR + _ATTENTION) + _HEAD,
    "timm vit_base_patch16": _PATCHES + 12 * (_LINEAR + _ATTENTION) + _HEAD,
    "BERT-base": _BERT,
    "LLaMA, shared keys": _LLAMA_MACS,
    "LSTM": 4 * _GATE,
    "GRU": 3 * _GATE,
}


def layers_truth(model: nn.Module, batch: Tensor) -> tuple[int, int]:
    """Forward and backward of convolutions and linear layers, each gradient as much as forward."""
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


def forward_truth(name: str, model: nn.Module, batch: Tensor) -> int:
    """Multiply-accumulates of one sample."""
    if name in FORMULAS:
        return FORMULAS[name]
    return layers_truth(model, batch)[0] + _SWIN * (name == "swin_t")


def step_truth(name: str, model: nn.Module, batch: Tensor, norms_alone: bool) -> tuple[int, int]:
    """Multiply-accumulates of forward and of backward."""
    if name != "vit_b_16":
        return layers_truth(model, batch)
    # attention has two gradients, and the image none
    inputs = 12 * (_LINEAR + 2 * _ATTENTION) + _HEAD
    weights = 0 if norms_alone else _PATCHES + 12 * _LINEAR + _HEAD
    return batch.shape[0] * FORMULAS[name], batch.shape[0] * (inputs + weights)


def with_fvcore(model: nn.Module, batch: Tensor) -> float:
    """What fvcore calls FLOPs are multiply-accumulates."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, batch)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def with_torch(model: nn.Module, batch: Tensor) -> float:
    """Two FLOPs are one multiply-accumulate."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    return counter.get_total_flops() / 2


def with_torchinfo(model: nn.Module, batch: Tensor) -> float:
    """Its `total_mult_adds`."""
    import torchinfo

    return torchinfo.summary(model, input_data=batch, verbose=0).total_mult_adds


def with_ptflops(model: nn.Module, batch: Tensor) -> float:
    """Its default backend."""
    import ptflops

    quiet = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
    shape = tuple(batch.shape[1:])
    return ptflops.get_model_complexity_info(
        model, shape, input_constructor=lambda shape: batch, **quiet
    )[0]


def with_calflops(model: nn.Module, batch: Tensor) -> float:
    """Its MACs, of forward."""
    import calflops

    return calflops.calculate_flops(
        model, args=[batch], print_results=False, output_as_string=False
    )[1]


def with_efftrain(model: nn.Module, batch: Tensor) -> float:
    """Ours."""
    return count_forward(model, batch).macs()


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


def ask(counter: str, model: nn.Module, batch: Tensor, true: int) -> str:
    """One cell: a counter's error, or the error that it stopped with."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return error(COUNTERS[counter](model, batch), true)
    except Exception as problem:  # a foreign tool may raise anything
        return type(problem).__name__


def forward_table(versions: dict[str, str]) -> None:
    """Errors of one forward pass."""
    print("Forward, one sample, eval mode: error against the truth\n")
    print("| model | MACs |", " | ".join(f"{n} {v}" for n, v in versions.items()), "|")
    print("| --- " * (2 + len(versions)) + "|")
    cells: dict[str, list[str]] = {name: [] for name in FORWARD}
    models = {name: build(name) for name in FORWARD}
    with torch.no_grad():
        true = {name: forward_truth(name, *models[name]) for name in FORWARD}
    for counter in versions:
        for name in FORWARD:
            cells[name].append(ask(counter, *models[name], true[name]))
    for name in FORWARD:
        print(f"| {name} | {true[name]:,} |", " | ".join(cells[name]), "|")


def training_table() -> None:
    """Errors of forward and backward, of the counters that run backward, and of the rule of three."""
    print("\nForward and backward, two samples, train mode: error against the truth\n")
    print("| model | trains | MACs | full / this | efftrain | torch | 3 x forward |")
    print("| --- " * 7 + "|")
    for name in TRAINING:
        with torch.device("meta"):
            model, batch = torchvision.models.get_model(name), torch.zeros(2, 3, 224, 224)
        full = 0
        for norms_alone in (False, True):
            for module in model.modules():
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(not norms_alone or isinstance(module, NORMS))
            forward, backward = step_truth(name, model, batch, norms_alone)
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
    names = ("torchvision", "timm", "transformers")
    others = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"Python {platform.python_version()}, {others}\n")
    missing = [name for name in COUNTERS if name not in versions]
    if missing:
        print(f"Not installed, left out: {', '.join(missing)}\n")
    forward_table(versions)
    training_table()


if __name__ == "__main__":
    main()
