"""What a training step keeps and takes, relative to plain norm-only fine-tuning.

python scripts/benchmarks/memory.py resnet50 mobilenet_v2 convnext_tiny deit bert llama
python scripts/benchmarks/memory.py mobilenet_v2 --statistics running --repeats 7

Prints a Markdown table for each model: bytes that the allocator holds at the end of forward (live),
at most during the step (peak), and CPU time of a step (median of interleaved steps, one thread), each
relative to plain norm-only; and the error of all gradients together, relative to plain autograd.
Weights are random, norms' scales and shifts as well; the head trains in every row.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.checkpoint import checkpoint

from efftrain.memory import MODES, reduce_memory

MIB = 2**20


@dataclass
class Subject:
    """A model, its batch, and where its parts are.

    Attributes:
        model: With random weights, nothing trained yet.
        inputs: Of the model.
        labels: Of the inputs.
        head: What the names of the head's parameters begin with.
        blocks: Finds what block checkpointing computes again.
        lora: Linear layers that get an adapter; none for a convolutional net.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    head: tuple[str, ...]
    blocks: Callable[[nn.Module], Iterable[nn.Module]]
    lora: tuple[str, ...] = ()


class Pooled(nn.Module):
    """A text model's mean state, classified."""

    def __init__(self, body: nn.Module, width: int) -> None:
        """Put ten classes on top."""
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores, [N, 10]."""
        return self.head(self.body(input_ids=tokens).last_hidden_state.mean(1))


def _images(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 224, 224), torch.randint(0, 1000, (count,))


def _by_type(*names: str) -> Callable[[nn.Module], list[nn.Module]]:
    return lambda model: [m for m in model.modules() if type(m).__name__ in names]


def resnet50() -> Subject:
    """torchvision, batch 8."""
    import torchvision

    model = torchvision.models.resnet50()
    return Subject(model, *_images(8), ("fc.",), _by_type("Bottleneck"))


def mobilenet_v2() -> Subject:
    """torchvision, batch 8, without dropout."""
    import torchvision

    model = torchvision.models.mobilenet_v2(dropout=0.0)
    return Subject(model, *_images(8), ("classifier.",), _by_type("InvertedResidual"))


def convnext_tiny() -> Subject:
    """torchvision, batch 4."""
    import torchvision

    model = torchvision.models.convnext_tiny(stochastic_depth_prob=0.0)
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.1, 1.0)
    lora = ("block.3", "block.5")
    return Subject(model, *_images(4), ("classifier.2",), _by_type("CNBlock"), lora)


def deit() -> Subject:
    """Timm's deit_small_patch16_224, batch 8."""
    import timm

    model = timm.create_model("deit_small_patch16_224")
    return Subject(model, *_images(8), ("head.",), _by_type("Block"), ("qkv",))


def bert() -> Subject:
    """BERT of 6 layers, 8 x 128 tokens, without dropout."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        num_hidden_layers=6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        vocab_size=3000,
    )
    model = Pooled(BertModel(config, add_pooling_layer=False), 768)
    tokens, labels = torch.randint(0, 3000, (8, 128)), torch.randint(0, 10, (8,))
    return Subject(model, tokens, labels, ("head.",), _by_type("BertLayer"), ("query", "value"))


def llama() -> Subject:
    """LLaMA's architecture, 4 layers of width 1024, 4 x 256 tokens."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        vocab_size=3000,
    )
    model = Pooled(LlamaModel(config), 1024)
    tokens, labels = torch.randint(0, 3000, (4, 256)), torch.randint(0, 10, (4,))
    names = ("q_proj", "v_proj")
    return Subject(model, tokens, labels, ("head.",), _by_type("LlamaDecoderLayer"), names)


SUBJECTS = {f.__name__: f for f in (resnet50, mobilenet_v2, convnext_tiny, deit, bert, llama)}


def prepare(subject: Subject) -> None:
    """Norms as after training: scales, shifts and statistics that are not 1 and 0."""
    for module in subject.model.modules():
        if "Norm" not in type(module).__name__ or getattr(module, "weight", None) is None:
            continue
        nn.init.uniform_(module.weight, 0.5, 1.5)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, 0, 0.2)
        if hasattr(module, "momentum"):
            module.momentum = 0.5
    if any(isinstance(m, nn.BatchNorm2d) for m in subject.model.modules()):
        with torch.no_grad():
            for _ in range(3):
                subject.model.train()(subject.inputs)


def variant(subject: Subject, row: str, running: bool) -> nn.Module:
    """A copy of the model for a row of the table."""
    model = copy.deepcopy(subject.model).train()
    if row == "LoRA r8":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=8, target_modules=list(subject.lora), init_lora_weights=False)
        model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        norm = "Norm" in type(owner).__name__
        chosen = {"full": True, "LoRA r8": "lora_" in name}.get(row, norm)
        parameter.requires_grad_(chosen or any(head in name for head in subject.head))
    if running:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    if row == "block checkpointing":
        for block in subject.blocks(model):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if row in MODES:
        reduce_memory(model, row)
    return model


def step(model: nn.Module, subject: Subject) -> None:
    """Forward and backward; gradients are dropped."""
    F.cross_entropy(model(subject.inputs), subject.labels).backward()
    model.zero_grad(set_to_none=True)


def measure_bytes(model: nn.Module, subject: Subject) -> tuple[int, int]:
    """Live and peak, from the allocator's events."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        with record_function("##forward"):
            loss = F.cross_entropy(model(subject.inputs), subject.labels)
        loss.backward()
    events = seen.profiler.kineto_results.events()
    end = next(e.start_ns() + e.duration_ns() for e in events if e.name() == "##forward")
    held = peak = live = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
        live = held if event.start_ns() <= end else live
    model.zero_grad(set_to_none=True)
    return live, peak


def measure_times(models: dict[str, nn.Module], subject: Subject, repeats: int) -> dict[str, float]:
    """Median CPU seconds of a step; the rows take turns, so that the machine's moods hit all."""
    taken: dict[str, list[float]] = {row: [] for row in models}
    for repeat in range(repeats + 1):
        for row, model in models.items():
            began = time.process_time()
            step(model, subject)
            if repeat:  # the first one warms up
                taken[row].append(time.process_time() - began)
    return {row: statistics.median(times) for row, times in taken.items()}


def gradients(model: nn.Module, subject: Subject) -> dict[str, Tensor]:
    """Of one step; running statistics stay."""
    model = copy.deepcopy(model)
    F.cross_entropy(model(subject.inputs), subject.labels).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def distance(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Of all gradients as one vector, relative."""
    off = sum(((expected[n] - found[n]).double() ** 2).sum() for n in expected)
    return float((off / sum((g.double() ** 2).sum() for g in expected.values())) ** 0.5)


def compare(name: str, running: bool, repeats: int) -> None:
    """Print the table of one model."""
    torch.manual_seed(0)
    subject = SUBJECTS[name]()
    prepare(subject)
    rows = ["norm-only", "full", "block checkpointing", *MODES]
    rows += ["LoRA r8"] if subject.lora else []
    models = {row: variant(subject, row, running) for row in rows}
    held = {row: measure_bytes(model, subject) for row, model in models.items()}
    expected = gradients(models["norm-only"], subject)
    errors = {row: distance(expected, gradients(models[row], subject)) for row in MODES}
    times = measure_times(models, subject, repeats)
    live, peak = held["norm-only"]
    batch = "running statistics" if running else "statistics of the batch"
    print(
        f"\n{name}, {batch}: norm-only {live / MIB:.0f} MiB live, {peak / MIB:.0f} MiB peak, ",
        end="",
    )
    print(f"{times['norm-only']:.2f} s\n\n| row | live | peak | time | gradient error |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        ratios = (held[row][0] / live, held[row][1] / peak, times[row] / times["norm-only"])
        off = f"{errors[row]:.1e}" if row in errors else ""
        print(f"| {row} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + f" | {off} |")


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[*SUBJECTS], choices=[*SUBJECTS])
    parser.add_argument("--statistics", choices=["batch", "running"], default="batch")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        compare(name, arguments.statistics == "running", arguments.repeats)


if __name__ == "__main__":
    main()
