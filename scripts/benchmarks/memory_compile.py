"""Memory and time of a step under torch.compile, with and without efftrain's pass over the joint graph.

python scripts/benchmarks/memory_compile.py bottlenecks mobilenet_v2
python scripts/benchmarks/memory_compile.py resnet50 --rounds 5

Norms train, all else is frozen; batch statistics, random weights, fp32, one thread. `live` is what the
allocator has given out at the end of forward and not got back, `peak` the most at any time of the step,
both read off the profiler's memory events; time is the processor's, medians of rounds in which the ways
take turns. `bottlenecks` are three of resnet50's first stage, on 4 images of 112 x 112.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torchvision.models.resnet import Bottleneck

from efftrain.memory.joint_graph import compile_reduced

MIB = 2**20
WAYS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "eager": lambda model: model,
    "torch.compile": lambda model: torch.compile(model, fullgraph=True),
    "compile_reduced": lambda model: compile_reduced(model, fullgraph=True),
}


def build(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """The model, its norms trainable, and a batch."""
    torch.manual_seed(0)
    if name == "bottlenecks":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(3, 256, 3, 2, 1),
            *(Bottleneck(256, 64) for _ in range(3)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        images = torch.randn(4, 3, 112, 112)
    else:
        model, images = (
            torchvision.models.get_model(name, weights=None),
            torch.randn(batch, 3, 224, 224),
        )
    for module in model.modules():
        is_norm = isinstance(module, (nn.BatchNorm2d, nn.LayerNorm))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(is_norm)
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # compiled code draws other numbers
    return model.train(), images


def step(run: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Forward and backward."""
    with record_function("forward"):
        loss = run(images).square().mean()
    loss.backward()


def memory(run: Callable[[Tensor], Tensor], images: Tensor) -> tuple[float, float]:
    """Live and peak, MiB above what was there before the step."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        step(run, images)
    events = profiler.profiler.kineto_results.events()
    end = max(e.start_ns() + e.duration_ns() for e in events if e.name() == "forward")
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = live = 0
    for when, change in changes:
        now += change
        peak = max(peak, now)
        live = now if when <= end else live
    return live / MIB, peak / MIB


def gradients(model: nn.Module) -> Tensor:
    """All of them in one row; taken away from the model."""
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def processor_ms(run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Of one step."""
    start = time.process_time()
    step(run, images)
    return (time.process_time() - start) * 1e3


def compare(name: str, options: argparse.Namespace) -> None:
    """Print one model's table."""
    base, images = build(name, options.batch)
    exact = copy.deepcopy(base).double()
    step(exact, images.double())
    truth = gradients(exact)
    runs, rows = {}, {}
    for way, make in WAYS.items():
        model = copy.deepcopy(base)
        runs[way] = make(model)
        start = time.perf_counter()
        step(runs[way], images)
        first_s = time.perf_counter() - start
        error = ((gradients(model).double() - truth).norm() / truth.norm()).item()
        step(runs[way], images)  # gradients are there from now on
        rows[way] = (*memory(runs[way], images), first_s, error)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, run in runs.items():
            times[way].append(processor_ms(run, images))
    print(f"\n{name}, batch {len(images)}, torch {torch.__version__}\n")
    heads = ["way"]
    for head in ("live, MiB", "peak, MiB", "step, ms"):
        heads += [head, "of eager"]
    print(f"| {' | '.join([*heads, 'first step, s', 'gradients from fp64'])} |")
    print("| --- " * 9 + "|")
    eager = (*rows["eager"][:2], statistics.median(times["eager"]))
    for way, (live, peak, first_s, error) in rows.items():
        took = statistics.median(times[way])
        print(
            f"| {way} | {live:.1f} | {live / eager[0]:.2f} | {peak:.1f} | {peak / eager[1]:.2f} "
            f"| {took:.0f} | {took / eager[2]:.2f} | {first_s:.0f} | {error:.1e} |",
            flush=True,
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Memory and time under torch.compile.")
    parser.add_argument("models", nargs="+", help="bottlenecks, or names of torchvision")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in options.models:
        compare(name, options)


if __name__ == "__main__":
    main()
