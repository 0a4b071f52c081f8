"""Counting parameters."""

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
