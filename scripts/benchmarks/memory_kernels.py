"""Time of the memory room's kernels: C++, Inductor and torch's own operators, in one run.

python scripts/benchmarks/memory_kernels.py
python scripts/benchmarks/memory_kernels.py --models resnet50 --kernels batch_norm --rounds 5 --no-inductor

For each kernel and each shape that the models have at that batch size (224 x 224, fp32, one thread, batch
statistics): the ways in turn, in rounds, timed by the processor time that the process got. The median of a
shape times the number of layers that have it, added up over the model, is the table's figure. Inductor
starts with an empty cache on disk; what its first calls took is printed as well, and how long the C++
takes to build.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from efftrain.memory import kernels
from efftrain.memory.kernels.cpp import build
from efftrain.memory.kernels.inductor import compilations

ACT = {"resnet50": "relu", "mobilenet_v2": "relu6"}
Call = Callable[[], Any]


def norm_shapes(name: str, batch: int) -> Counter[tuple[int, ...]]:
    """Inputs of the model's BatchNorms, and how many layers have each."""
    shapes: Counter[tuple[int, ...]] = Counter()
    model = torchvision.models.get_model(name, weights=None).eval()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[(batch, *inputs[0].shape[1:])] += 1

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return shapes


def calls_on(shape: tuple[int, ...], act: str) -> dict[str, Call]:
    """The kernels on random tensors of that shape."""
    x, grad, channels = torch.randn(shape), torch.randn(shape), shape[1]
    weight, bias = torch.rand(channels) + 0.5, torch.randn(channels)
    mean, var = torch.zeros(channels), torch.ones(channels)
    options = {"act": act}
    forward = {"training": True, "momentum": 0.1, "eps": 1e-5, **options}
    _, m, r = kernels.batch_norm_act(x, weight, bias, mean, var, **forward)
    _, codes, low, step, rstd = kernels.batch_norm_act_8bit(
        x, weight, bias, mean, var, eps=1e-5, **options
    )
    _, bits = kernels.add_relu(x, grad)
    _, derivative = kernels.gelu_8bit(x)
    eight = (grad, codes, low, step, weight, mean, rstd)
    return {
        "batch_norm_act": lambda: kernels.batch_norm_act(x, weight, bias, mean, var, **forward),
        "batch_norm_act_again": lambda: kernels.batch_norm_act_again(
            x, weight, bias, m, r, **options
        ),
        "batch_norm_act_backward": lambda: kernels.batch_norm_act_backward(
            grad, x, weight, bias, m, r, training=True, **options
        ),
        "batch_norm_act_8bit": lambda: kernels.batch_norm_act_8bit(
            x, weight, bias, mean, var, eps=1e-5, **options
        ),
        "batch_norm_act_8bit_backward": lambda: kernels.batch_norm_act_8bit_backward(
            *eight, **options
        ),
        "add_relu": lambda: kernels.add_relu(x, grad),
        "mask_grad": lambda: kernels.mask_grad(grad, bits),
        "gelu_8bit": lambda: kernels.gelu_8bit(x),
        "gelu_8bit_backward": lambda: kernels.gelu_8bit_backward(grad, derivative),
        "gated_backward": lambda: kernels.gated_backward(grad, x, x),
    }


def timed(call: Call) -> float:
    """Milliseconds of the processor."""
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def medians(call: Call, ways: list[str], rounds: int) -> dict[str, float]:
    """Milliseconds of each way, the ways in turn; the first call of each is left out."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            with kernels.using(way):
                took = timed(call)
            if number:
                times[way].append(took)
    return {way: statistics.median(of) for way, of in times.items()}


def measure(name: str, options: argparse.Namespace, ways: list[str]) -> None:
    """Print the table of one model."""
    total: dict[str, Counter[str]] = {}
    for shape, layers in norm_shapes(name, options.batch).items():
        for kernel, call in calls_on(shape, ACT.get(name, "relu")).items():
            if options.kernels and not any(kernel.startswith(each) for each in options.kernels):
                continue
            row = total.setdefault(kernel, Counter())
            for way, took in medians(call, ways, options.rounds).items():
                row[way] += layers * took
    print(f"\n{name}, batch {options.batch}, all its BatchNorm shapes, ms\n")
    print(f"| kernel | {' | '.join(ways)} | {' | '.join(f'{way} / cpp' for way in ways[1:])} |")
    print("| --- " * (2 * len(ways)) + "|")
    for kernel, row in total.items():
        figures = [f"{row[way]:.1f}" for way in ways]
        ratios = [f"{row[way] / row['cpp']:.2f}" for way in ways[1:]]
        print(f"| {kernel} | {' | '.join(figures + ratios)} |", flush=True)


def first_calls(shape: tuple[int, ...], act: str, chosen: list[str]) -> None:
    """Print what compiling takes, from an empty cache."""
    for kernel, call in calls_on(shape, act).items():
        if chosen and not any(kernel.startswith(each) for each in chosen):
            continue
        start = time.perf_counter()
        with kernels.using("inductor"):
            call()
        print(
            f"first call of {kernel} by Inductor: {time.perf_counter() - start:.1f} s", flush=True
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time of the memory room's kernels.")
    parser.add_argument("--models", nargs="*", default=list(ACT))
    parser.add_argument("--kernels", nargs="*", default=[], help="beginnings of names")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-inductor", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = ["cpp", "aten"] if options.no_inductor else ["cpp", "inductor", "aten"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        compiler = build.find_compiler()
        if compiler is None:
            raise SystemExit("no C++ compiler here")
        start = time.perf_counter()
        build.build(compiler, (*build.FLAGS, *build.EXTRAS[0]), Path(folder))
        print(
            f"C++ kernels built in {time.perf_counter() - start:.1f} s; torch {torch.__version__}"
        )
        if not options.no_inductor:
            first_calls((8, 64, 56, 56), "relu", options.kernels)
        for name in options.models:
            measure(name, options, ways)
        print(f"\nversions compiled by Inductor: {compilations()}")


if __name__ == "__main__":
    main()
