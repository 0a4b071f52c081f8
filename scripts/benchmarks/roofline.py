"""Predicted against measured time, by layer and in total, and what a grouped convolution saves.

python scripts/benchmarks/roofline.py --threads 1
python scripts/benchmarks/roofline.py --threads 2 --only convolutions

Prints Markdown tables. The ceilings are measured first, then each model's layers and its whole pass
for one image of 224 x 224, in rounds. Random weights.

So that other programs do no harm: one thread is timed by the processor time that it got; with more,
a round in which another program had one of the cores is measured again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torchvision
from torch import Tensor, nn

from efftrain.measure.ceilings import measure_ceilings
from efftrain.measure.latency import measure_latency
from efftrain.measure.layer_times import measure_layers
from efftrain.measure.stopwatch import Stopwatch
from efftrain.profiling.count import count_forward
from efftrain.profiling.roofline import Ceilings, predict
from efftrain.units import GIGA, MS_PER_S

MODELS = (
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
)
SHAPES = ((256, 28), (96, 112))
ROUNDS = 3
RUNS = 25  # of a whole pass, in each round
TRIES = 40
CPU = torch.device("cpu")

T = TypeVar("T")


def clock() -> float:
    """Seconds: of the one thread, or on the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def calmly(measure: Callable[[], T]) -> T:
    """Measure until nobody disturbs."""
    watch = Stopwatch(CPU, clock)
    for _ in range(TRIES):
        before, found = watch.is_disturbed(), measure()
        if not (before or watch.is_disturbed()):
            return found
    sys.exit("another program keeps the cores busy; end it, or give fewer --threads")


def find_ceilings() -> Ceilings:
    """Of three calm measurements the middle ones."""
    found = [calmly(lambda: measure_ceilings(CPU, clock=clock)) for _ in range(ROUNDS)]
    return Ceilings(
        found[0].device,
        found[0].threads,
        {
            name: statistics.median(each.flops_per_s[name] for each in found)
            for name in found[0].flops_per_s
        },
        statistics.median(each.bytes_per_s for each in found),
        found[0].source,
        found[0].measured_on,
    )


def median_error(pairs: list[tuple[float, float]]) -> str:
    """Of predictions against measurements; "-" where there are none."""
    if not pairs:
        return "-"
    return f"{100 * statistics.median(abs(p - m) / m for p, m in pairs):.0f} %"


def measured_ms(model: nn.Module, image: Tensor) -> tuple[float, dict[str, float]]:
    """A whole pass, and each layer's own time; medians over the rounds."""
    passes: list[float] = []
    layers: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        passes.append(calmly(lambda: measure_latency(model, image, runs=RUNS, clock=clock).p50_ms))
        for path, ms in calmly(lambda: measure_layers(model, image, clock=clock)).items():
            layers.setdefault(path, []).append(ms)
    return statistics.median(passes), {path: statistics.median(ms) for path, ms in layers.items()}


def kind_of(module: nn.Module, path: str) -> str:
    """What a reader calls a layer."""
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels > 1:
            return "depthwise convolution"
        return "1 x 1 convolution" if module.kernel_size == (1, 1) else "other convolution"
    if "Norm" in type(module).__name__:
        return "LayerNorm" if "Layer" in type(module).__name__ else "BatchNorm"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, (nn.Linear, nn.AdaptiveAvgPool2d)):
        return "linear" if isinstance(module, nn.Linear) else "pooling"
    if any(module.children()) or not path:
        return "residual addition and what else a block does itself"
    return "activation function and others"


def models_table(ceilings: Ceilings, names: tuple[str, ...]) -> None:
    """One line for each model; then one for each kind of layer, and the ratios between models."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    totals: dict[str, tuple[float, float, float]] = {}
    print("| model | predicted ms | measured ms | measured / predicted | layers as predicted: "
          "median error, products | other layers | rank correlation | bound by memory |")  # fmt: skip
    print("| --- " * 8 + "|")
    for name in names:
        model = torchvision.models.get_model(name).eval()
        image = torch.rand(1, 3, 224, 224)
        count = count_forward(model, image)
        roofline = predict(count, ceilings)
        products = {entry.path for entry in count.entries if entry.macs}
        total, measured = measured_ms(model, image)
        pairs = {
            path: (layer.predicted_ms, measured[path])
            for path, layer in roofline.layers.items()
            if path in measured
        }
        predicted = roofline.predicted_ms or float("nan")
        totals[name] = count.macs(), predicted, total
        modules = dict(model.named_modules())
        for path, pair in pairs.items():
            kinds.setdefault(kind_of(modules[path], path), []).append(pair)
        memory = sum(
            each.predicted_ms for each in roofline.layers.values() if each.bound == "memory"
        )
        ranks = torch.tensor([*pairs.values()]).argsort(dim=0).argsort(dim=0).float()
        cells = [
            name,
            f"{predicted:.1f}",
            f"{total:.1f}",
            f"{total / predicted:.2f}",
            median_error([pair for path, pair in pairs.items() if path in products]),
            median_error([pair for path, pair in pairs.items() if path not in products]),
            f"{torch.corrcoef(ranks.T)[0, 1]:.2f}",
            f"{100 * memory / predicted:.0f} %",
        ]
        print("|", " | ".join(cells), "|", flush=True)
    kinds_table(kinds)
    ratios_table(totals)


def kinds_table(kinds: dict[str, list[tuple[float, float]]]) -> None:
    """Over all models: how much longer than predicted each kind of layer takes."""
    print("\n| layer | number | measured / predicted: median | quartiles |")
    print("| --- " * 4 + "|")
    for kind, pairs in kinds.items():
        ratios = torch.tensor([measured / predicted for predicted, measured in pairs])
        low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        print(f"| {kind} | {len(pairs)} | {middle:.2f} | {low:.2f} to {high:.2f} |")


def ratios_table(totals: dict[str, tuple[float, float, float]]) -> None:
    """How many times what each other model needs the first one does."""
    first, *others = totals
    print(f"\n| {first} against | MACs | predicted time | measured time |")
    print("| --- " * 4 + "|")
    for name in others:
        saved = [a / b for a, b in zip(totals[first], totals[name], strict=True)]
        print(f"| {name} |", " | ".join(f"{ratio:.1f} x" for ratio in saved), "|")


def grouped(channels: int) -> Iterator[tuple[str, nn.Conv2d]]:
    """The same 3 x 3 convolution with ever more groups."""
    for groups in (1, 2, 4, 8, 32, channels):
        label = {1: "dense", channels: "depthwise"}.get(groups, f"{groups} groups")
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        yield label, conv.eval()


def convolutions_table(ceilings: Ceilings, channels: int, side: int) -> None:
    """How many times fewer FLOPs, how many times less time is predicted and measured."""
    print(f"\n{channels} channels at {side} x {side}\n")
    print("| 3 x 3 | MFLOP | FLOP for each byte | bound | predicted ms | measured ms | GFLOP/s "
          "| FLOPs saved | time saved, predicted | measured |")  # fmt: skip
    print("| --- " * 10 + "|")
    image = torch.rand(1, channels, side, side)
    convs = dict(grouped(channels))
    watch = Stopwatch(CPU, clock)

    def rates() -> dict[str, float]:
        return {
            label: watch.rate(lambda conv=conv: conv(image), 1, budget_s=2)
            for label, conv in convs.items()
        }

    with torch.inference_mode():
        rounds = [calmly(rates) for _ in range(5)]
    taken = {label: MS_PER_S / statistics.median(r[label] for r in rounds) for label in convs}
    dense_flops = dense_ms = 0.0
    for label, conv in convs.items():
        count = count_forward(conv, image)
        layer = predict(count, ceilings).layers[""]
        flops, moved = count.flops(), sum(entry.bytes_moved for entry in count.entries)
        dense_flops, dense_ms = dense_flops or flops, dense_ms or layer.predicted_ms
        cells = [
            label,
            f"{flops / 1e6:.1f}",
            f"{flops / moved:.1f}",
            layer.bound,
            f"{layer.predicted_ms:.3f}",
            f"{taken[label]:.3f}",
            f"{flops / taken[label] * MS_PER_S / GIGA:.0f}",
            f"{dense_flops / flops:.0f} x",
            f"{dense_ms / layer.predicted_ms:.1f} x",
            f"{taken['dense'] / taken[label]:.1f} x",
        ]
        print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["models", "convolutions"])
    parser.add_argument("--models", nargs="+", default=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ceilings = find_ceilings()
    peaks = ", ".join(f"{n} {f / GIGA:.0f}" for n, f in ceilings.flops_per_s.items())
    print(f"{ceilings.device}, {ceilings.threads} threads, torch {torch.__version__}, "
          f"{ceilings.measured_on}: {peaks} GFLOP/s; {ceilings.bytes_per_s / GIGA:.0f} GB/s; ridge "
          f"{ceilings.ridge('float32'):.1f} FLOP for each byte of float32\n")  # fmt: skip
    if arguments.only != "convolutions":
        models_table(ceilings, tuple(arguments.models))
    if arguments.only != "models":
        for channels, side in SHAPES:
            convolutions_table(ceilings, channels, side)


if __name__ == "__main__":
    main()
