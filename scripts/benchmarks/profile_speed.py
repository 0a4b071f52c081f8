"""How long a profile takes, beside fvcore on the same models.

python scripts/benchmarks/profile_speed.py
python scripts/benchmarks/profile_speed.py --rounds 3 mobilenet_v2 timm:vit_tiny_patch16_224
python scripts/benchmarks/profile_speed.py --llama70b

For each model and round, one after the other in one process: `efftrain.profile` as the first time in a
process (what is known of shapes is forgotten before), `efftrain.profile` again, and fvcore's
FlopCountAnalysis + ActivationCountAnalysis. The ratio of a model is the median over the rounds, each
efftrain over the fvcore of the same round. The first round of a first model warms up and is left out.

Seconds are those of the processor, on one thread: where nothing else runs they are the clock's, and
where others share the machine they are still ours.

--llama70b profiles a LLaMA of 70 billion parameters (80 layers, 512 tokens) on the meta device, its
norms trainable, and prints seconds and the peak of the process's memory, imports and torch included.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import efftrain
from efftrain.graph.shapes import forget_shapes

MODELS = (
    "alexnet", "vgg16", "squeezenet1_1", "resnet18", "resnet50", "resnext50_32x4d", "densenet121",
    "googlenet", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0",
    "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny",
    "vit_b_16", "swin_t", "maxvit_t",
)  # fmt: skip

# LLaMA-2-70B's architecture (Touvron et al. 2023, table 1 and the published config)
LLAMA = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
TOKENS = 512


def build(name: str) -> nn.Module:
    """A model of torchvision, or of timm as `timm:name`, without pretrained weights."""
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:")).eval()
    options = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **options).eval()


def with_fvcore(model: nn.Module, image: Tensor) -> None:
    """Count both of what fvcore counts."""
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

    for analysis in (FlopCountAnalysis, ActivationCountAnalysis):
        counting = analysis(model, image)
        counting.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counting.tracer_warnings("none").total()


def seconds(run: Callable[[], Any]) -> float:
    """The processor's time for one call, garbage left from before not its own."""
    gc.collect()
    start = time.process_time()
    run()
    return time.process_time() - start


def one_round(model: nn.Module, image: Tensor) -> tuple[float, float, float]:
    """Seconds of a first profile, of a second one, and of fvcore."""
    forget_shapes()
    FakeTensorMode.cache_clear()
    return (
        seconds(lambda: efftrain.profile(model, image)),
        seconds(lambda: efftrain.profile(model, image)),
        seconds(lambda: with_fvcore(model, image)),
    )


def compare(names: tuple[str, ...], rounds: int) -> None:
    """Print the table."""
    image = torch.zeros(1, 3, 224, 224)
    one_round(build("resnet18"), image)
    print("| model | first, s | again, s | fvcore, s | first / fvcore | again / fvcore |")
    print("| --- " * 6 + "|")
    ratios: list[tuple[float, float]] = []
    for name in names:
        model = build(name)
        times = [one_round(model, image) for _ in range(rounds)]
        first, again, fvcore = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = (
            statistics.median(first / fvcore for first, _, fvcore in times),
            statistics.median(again / fvcore for _, again, fvcore in times),
        )
        ratios.append(ratio)
        print(
            f"| {name} | {first:.3f} | {again:.3f} | {fvcore:.3f} | {ratio[0]:.2f} | {ratio[1]:.2f} |",
            flush=True,
        )
    firsts, agains = zip(*ratios, strict=True)
    print(
        f"\nMedian of {len(names)} models: first {statistics.median(firsts):.2f}, again "
        f"{statistics.median(agains):.2f}; largest: first {max(firsts):.2f}, again {max(agains):.2f}"
    )


def llama70b() -> None:
    """Profile one training step of the large model, and print what that took."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA)).train()
        batch = {"input_ids": torch.zeros(1, TOKENS, dtype=torch.long)}
        batch["labels"] = batch["input_ids"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    before = peak_gb()
    clock, start = time.perf_counter(), time.process_time()
    report = efftrain.profile(model, batch, optimizer=torch.optim.AdamW)
    took, waited = time.process_time() - start, time.perf_counter() - clock
    print(
        f"{report.params.total:,} parameters, {report.macs.forward:,} MACs forward, "
        f"{report.macs.step:,} of the step\n"
        f"{took:.2f} s ({waited:.2f} s by the clock), peak memory of the process {peak_gb():.2f} GB "
        f"({before:.2f} GB before)"
    )


def peak_gb() -> float:
    """The most that this process has held; Linux says it in KiB.

    `ru_maxrss` would not do: a new process takes over that of the one which started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


def machine() -> str:
    """What the figures hold for."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    names = ("torch", "torchvision", "fvcore", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return (
        f"{cpu}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time of a profile beside fvcore's.")
    parser.add_argument("models", nargs="*", default=MODELS, help="names of torchvision; timm:name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--llama70b", action="store_true", help="the large model, alone")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")  # fvcore's, about torch.jit
    torch.set_num_threads(chosen.threads)
    print(machine())
    if chosen.llama70b:
        llama70b()
    else:
        compare(tuple(chosen.models), chosen.rounds)


if __name__ == "__main__":
    sys.exit(main())
