"""Memory of a training step, predicted from shapes, side by side with what the allocator hands out.

OMP_NUM_THREADS=1 python scripts/benchmarks/memory_prediction.py
OMP_NUM_THREADS=1 python scripts/benchmarks/memory_prediction.py resnet18 bert    # some of the models
OMP_NUM_THREADS=1 python scripts/benchmarks/memory_prediction.py --precision bf16-mixed

Prints a Markdown table: 20 models, each with everything, the norms and the head, or the head alone
trainable. Saved bytes are what is there at the end of forward, when nothing but the loss holds the graph;
the peak is that of the second step, with AdamW. Both are read off the profiler's memory events. The last
column is the part of the predicted peak that kernels need inside (`scratch_bytes`).
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from efftrain.graph.rehearsal import rehearse
from efftrain.profiling.step import Step, run_step

CLASSES = 100
VOCABULARY = 1000
MODES = ("full", "norm", "head")
NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm")


class Recurrent(nn.Module):
    """Words, two recurrent layers, a norm and a head."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, 64), nn.LayerNorm(128)
        self.rnn = nn.LSTM(64, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Scores of each sentence."""
        return self.head(self.norm(self.rnn(self.embed(input_ids))[0][:, -1]))


def words(tokens: int = 64) -> Tensor:
    """Eight sentences."""
    return torch.randint(0, VOCABULARY, (8, tokens))


def bert() -> tuple[nn.Module, Any]:
    """Three blocks; some sentences are padded, as in any real batch.

    Transformers drops a mask that hides nothing, which only a run with values can know.
    """
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        num_labels=10,
    )
    mask = torch.ones(8, 64, dtype=torch.long)
    mask[::2, 48:] = 0
    labels = torch.zeros(8, dtype=torch.long)
    batch = {"input_ids": words(), "attention_mask": mask, "labels": labels}
    return transformers.BertForSequenceClassification(config), batch


def llama() -> tuple[nn.Module, Any]:
    """Three blocks whose heads share keys."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    tokens = words()
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens}


def gpt2() -> tuple[nn.Module, Any]:
    """Three blocks; its head is its embedding, so that training the head trains through all."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=128, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    tokens = words()
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}


def t5() -> tuple[nn.Module, Any]:
    """Two blocks on each side."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=128,
        d_ff=256,
        d_kv=32,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    batch = {"input_ids": words(), "labels": words(32)}
    return transformers.T5ForConditionalGeneration(config), batch


def of_torchvision(name: str, size: int = 64) -> Callable[[], tuple[nn.Module, Any]]:
    """Eight pictures."""
    return lambda: (
        torchvision.models.get_model(name, weights=None, num_classes=CLASSES),
        torch.randn(8, 3, size, size),
    )


def of_timm(
    name: str, size: int = 64, samples: int = 8, **settings: Any
) -> Callable[[], tuple[nn.Module, Any]]:
    """Some pictures."""
    return lambda: (
        timm.create_model(name, num_classes=CLASSES, **settings),
        torch.randn(samples, 3, size, size),
    )


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet18": of_torchvision("resnet18"),
    "resnext50_32x4d": of_torchvision("resnext50_32x4d"),
    "densenet121": of_torchvision("densenet121"),
    "mobilenet_v2": of_torchvision("mobilenet_v2"),
    "mobilenet_v3_small": of_torchvision("mobilenet_v3_small", 96),
    "efficientnet_b0": of_torchvision("efficientnet_b0"),
    "regnet_y_400mf": of_torchvision("regnet_y_400mf"),
    "shufflenet_v2_x1_0": of_torchvision("shufflenet_v2_x1_0"),
    "squeezenet1_1": of_torchvision("squeezenet1_1", 96),
    "swin_t": of_torchvision("swin_t"),
    "convnext_atto": of_timm("convnext_atto"),
    "vit_tiny_patch16": of_timm("vit_tiny_patch16_224", samples=16, img_size=64),
    "mixer_s32": of_timm("mixer_s32_224", 224, 4),
    "mobilevit_xxs": of_timm("mobilevit_xxs", 96),
    "nf_resnet26": of_timm("nf_resnet26"),
    "bert": bert,
    "llama": llama,
    "gpt2": gpt2,
    "t5": t5,
    "lstm": lambda: (Recurrent(), {"input_ids": words()}),
}


def train(model: nn.Module, mode: str) -> None:
    """Make everything, norms and head, or the head trainable."""
    head = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    for module in model.modules():
        norm = any(name in type(module).__name__ for name in NORMS)
        trains = {"full": True, "norm": norm or module is head, "head": module is head}[mode]
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(trains)
    model.train()


def loss_of(output: Any) -> Tensor:
    """The model's own loss, or that of the first class."""
    own = getattr(output, "loss", None)
    if own is not None:
        return own
    return nn.functional.cross_entropy(output, torch.zeros(len(output), dtype=torch.long))


class Measured:
    """A model that trains."""

    def __init__(self, model: nn.Module, batch: Any, precision: torch.dtype | None) -> None:
        """Take the model as it is."""
        self._model, self._batch, self._precision = model, batch, precision
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained)

    def saved_bytes(self) -> int:
        """Kept at the end of forward, without the loss."""
        kept, _, loss = allocated(self._loss)
        return kept - loss.untyped_storage().nbytes()

    def highest_bytes(self) -> int:
        """Above what is there between two steps, in the second."""
        self._step()
        self._optimizer.zero_grad()
        return allocated(self._step)[1]

    def _loss(self) -> Tensor:
        with torch.autocast(
            "cpu", self._precision, enabled=self._precision is not None, cache_enabled=False
        ):
            batch = self._batch
            return loss_of(self._model(**batch) if isinstance(batch, dict) else self._model(batch))

    def _step(self) -> None:
        self._optimizer.zero_grad()
        self._loss().backward()
        self._optimizer.step()


def allocated(run: Callable[[], Any]) -> tuple[int, int, Any]:
    """Bytes that the allocator handed out and did not get back, and the most at once."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return now, highest, result


def error(predicted: int, measured: int) -> str:
    """In per cent."""
    if predicted == measured:
        return "exact"
    return f"{100 * (predicted / measured - 1):+.2f} %"


def row(name: str, mode: str, step: Step, measured: Measured) -> tuple[str, float, float]:
    """One line, and the sizes of its two errors in per cent."""
    if step.saved is None or step.peak is None:
        raise TypeError("a step that is run with memory=True shows its memory")
    peak = step.peak
    saved, really_saved = step.saved.saved_bytes, measured.saved_bytes()
    there = peak.parameter_bytes + peak.buffer_bytes + peak.batch_bytes + peak.optimizer_bytes
    highest = there + measured.highest_bytes()
    cells = [
        name,
        mode,
        f"{saved:,}",
        f"{really_saved:,}",
        error(saved, really_saved),
        f"{peak.step_peak_bytes:,}",
        f"{highest:,}",
        error(peak.step_peak_bytes, highest),
        f"{peak.scratch_bytes:,}",
    ]
    off = (abs(saved / really_saved - 1), abs(peak.step_peak_bytes / highest - 1))
    return f"| {' | '.join(cells)} |", 100 * off[0], 100 * off[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", help=" ".join(MODELS))
    parser.add_argument("--precision", choices=["32", "bf16-mixed"], default="32")
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(MODELS):
        parser.error(f"no such model: {' '.join(sorted(unknown))}")
    precision = torch.bfloat16 if arguments.precision == "bf16-mixed" else None
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"torch {torch.__version__}, {arguments.precision}, {torch.get_num_threads()} threads, "
        f"{capability}, {os.cpu_count()} cores, {platform.machine()}\n"
    )
    print("| model | trains | saved, predicted | saved, measured | error |", end="")
    print(" peak, predicted | peak, measured | error | scratch |")
    print("| --- " * 9 + "|")
    errors: list[tuple[float, float]] = []
    for name in arguments.models or MODELS:
        torch.manual_seed(0)
        model, batch = MODELS[name]()
        for mode in MODES:
            train(model, mode)
            step = rehearse(
                lambda rehearsal: run_step(
                    rehearsal,
                    loss_of,
                    optimizer=torch.optim.AdamW,
                    memory=True,
                    autocast=precision,
                ),
                model,
                batch,
            )
            line, *off = row(name, mode, step, Measured(model, batch, precision))
            errors.append((off[0], off[1]))
            print(line, flush=True)
    worst = [max(each) for each in zip(*errors, strict=True)]
    print(f"\nLargest error of {len(errors)}: saved {worst[0]:.2f} %, peak {worst[1]:.2f} %")


if __name__ == "__main__":
    main()
