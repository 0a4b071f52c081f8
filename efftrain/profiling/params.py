"""Parameters, and the bytes that they take."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from efftrain.profiling.stored import (
    local_bytes,
    memory_name,
    packed_tensors,
    parameter_elements,
    stored_bytes,
)
from efftrain.units import KIB, MIB


@dataclass(frozen=True)
class ParameterTotals:
    """Elements and bytes of a model.

    Attributes:
        total: Elements of all parameters; a tied tensor counts once.
        trainable: Of these, those that require a gradient.
        trainable_pct: 100 x trainable / total.
        buffers: Elements of the registered buffers.
        model_bytes: What the parameters and buffers of the whole model take: packed and quantized ones as
            they are, with their scales.
        local_bytes: The part of it that this process holds; None where nothing is shared out.
    """

    total: int
    trainable: int
    trainable_pct: float
    buffers: int
    model_bytes: int
    local_bytes: int | None = None

    def to_dict(self) -> dict[str, int | float]:
        """The counts under the keys of `summary.json`; the bytes belong to `size`."""
        names = ("total", "trainable", "trainable_pct", "buffers")
        return {name: getattr(self, name) for name in names}

    def to_tags(self) -> dict[str, float]:
        """The counts under their TensorBoard tags."""
        return {f"params/{name}": float(value) for name, value in self.to_dict().items()}


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model as a file or in memory.

    Attributes:
        model_bytes: Parameters and buffers as they are.
        fp32_bytes: Parameters at 32 bits.
        fp16_bytes: Parameters at 16 bits, float16 or bfloat16.
        int8_bytes: Parameters at 8 bits, without the scales of the channels.
        int4_bytes: Parameters at 4 bits, without the scales of the groups.
        delta_bytes: The file that one fine-tuned task adds; None where that is not known.
        local_bytes: Of `model_bytes`, what this process holds; None where nothing is shared out.
    """

    model_bytes: int
    fp32_bytes: int
    fp16_bytes: int
    int8_bytes: int
    int4_bytes: int
    delta_bytes: int | None = None
    local_bytes: int | None = None

    def to_dict(self) -> dict[str, int]:
        """The bytes under their JSON keys."""
        return {name: size for name, size in asdict(self).items() if size is not None}

    def to_tags(self) -> dict[str, float]:
        """The sizes under their TensorBoard tags."""
        widths = ("model", "fp32", "fp16", "int8", "int4")
        tags = {f"size/{name}_mib": getattr(self, f"{name}_bytes") / MIB for name in widths}
        return (
            tags if self.delta_bytes is None else {**tags, "size/delta_kib": self.delta_bytes / KIB}
        )


def size_of(totals: ParameterTotals) -> Sizes:
    """A model's bytes, as it is and as it would be at other widths."""
    return Sizes(
        model_bytes=totals.model_bytes,
        fp32_bytes=4 * totals.total,
        fp16_bytes=2 * totals.total,
        int8_bytes=totals.total,
        int4_bytes=(totals.total + 1) // 2,
        local_bytes=totals.local_bytes,
    )


def count_parameters(model: nn.Module) -> ParameterTotals:
    """Count a model's parameters and buffers.

    Args:
        model: On any device, meta included. Quantized weights are understood (torchao, bitsandbytes,
            torch.ao.nn.quantized), and sharded ones (DTensor: FSDP2 and tensor parallelism; ZeRO-3).
    """
    parameters = list(model.parameters())
    buffers = list(model.buffers())
    packed = [tensor for module in model.modules() for tensor in packed_tensors(module)]
    distinct = {memory_name(p): p for p in parameters}.values()
    total = sum(parameter_elements(p) for p in [*distinct, *packed])
    trainable = sum(parameter_elements(p) for p in distinct if p.requires_grad)
    everything = [*parameters, *buffers, *packed]
    return ParameterTotals(
        total=total,
        trainable=trainable,
        trainable_pct=100 * trainable / total if total else 0.0,
        buffers=sum(b.numel() for b in buffers),
        model_bytes=stored_bytes(everything),
        local_bytes=local_bytes(everything),
    )
