"""Parameters, and the bytes that they take."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from efftrain.units import MIB


@dataclass(frozen=True)
class ParameterTotals:
    """Elements and bytes of a model.

    Attributes:
        total: Elements of all parameters; a tied tensor counts once.
        trainable: Of these, those that require a gradient.
        trainable_pct: 100 x trainable / total.
        buffers: Elements of the registered buffers.
        model_bytes: Parameters and buffers at their own dtypes.
    """

    total: int
    trainable: int
    trainable_pct: float
    buffers: int
    model_bytes: int

    def to_dict(self) -> dict[str, int | float]:
        """The counts under the keys of `summary.json`."""
        values = asdict(self)
        del values["model_bytes"]  # belongs to `size`
        return values

    def to_tags(self) -> dict[str, float]:
        """The counts under their TensorBoard tags."""
        tags = {f"params/{name}": float(value) for name, value in self.to_dict().items()}
        return tags | {"size/model_mib": self.model_bytes / MIB}


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model as a file or in memory.

    Attributes:
        model_bytes: Parameters and buffers at their own dtypes.
        fp32_bytes: Parameters at 32 bits.
        fp16_bytes: Parameters at 16 bits, float16 or bfloat16.
        int8_bytes: Parameters at 8 bits, without the scales of the channels.
        int4_bytes: Parameters at 4 bits, without the scales of the groups.
        delta_bytes: The file that one fine-tuned task adds; None where that is not known.
    """

    model_bytes: int
    fp32_bytes: int
    fp16_bytes: int
    int8_bytes: int
    int4_bytes: int
    delta_bytes: int | None = None

    def to_dict(self) -> dict[str, int]:
        """The bytes under their JSON keys."""
        return {name: size for name, size in asdict(self).items() if size is not None}


def size_of(totals: ParameterTotals) -> Sizes:
    """A model's bytes, as it is and as it would be at other widths."""
    return Sizes(
        model_bytes=totals.model_bytes,
        fp32_bytes=4 * totals.total,
        fp16_bytes=2 * totals.total,
        int8_bytes=totals.total,
        int4_bytes=(totals.total + 1) // 2,
    )


def count_parameters(model: nn.Module) -> ParameterTotals:
    """Count a model's parameters and buffers."""
    parameters = list(model.parameters())
    buffers = list(model.buffers())
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return ParameterTotals(
        total=total,
        trainable=trainable,
        trainable_pct=100 * trainable / total if total else 0.0,
        buffers=sum(b.numel() for b in buffers),
        model_bytes=sum(t.numel() * t.element_size() for t in [*parameters, *buffers]),
    )
