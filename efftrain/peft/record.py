"""What peft has done to a model, kept on the model: it is copied and pickled with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from efftrain.peft.selection import Selection

_KEY = "_efftrain_peft"


@dataclass
class Record:
    """The only state that this room keeps.

    Attributes:
        selection: What `apply` switched on, or None.
        bn_stats: The policy that it set, or None.
        buffers: Running statistics as they were when it did, on the CPU.
        base: What a loaded delta replaced, on the CPU, by state-dict key.
        loaded: SHA-256 of the loaded delta's content, or "".
        low: What `hold_float32` replaced, on the CPU, by state-dict key.
        raised: Paths of the layers that loading a delta raised to float32.
    """

    selection: Selection | None = None
    bn_stats: str | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    base: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    loaded: str = ""
    low: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    raised: tuple[str, ...] = ()


def record_of(model: nn.Module) -> Record:
    """The model's record; an empty one is put there where it has none."""
    record = model.__dict__.get(_KEY)
    if not isinstance(record, Record):
        record = model.__dict__[_KEY] = Record()
    return record
