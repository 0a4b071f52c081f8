"""Where the values of a tensor end up, once everything that only moves them is taken away."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from efftrain.surgery.passage import pass_through
from efftrain.surgery.trace import Event, LayerCall, Trace


@dataclass(frozen=True)
class End:
    """A layer that a tensor goes into.

    Attributes:
        call: The run of that layer.
        tensor: What it is given.
        dim: The dimension of that tensor that holds the channels.
    """

    call: LayerCall
    tensor: Tensor
    dim: int


@dataclass(frozen=True)
class Flow:
    """All ways of a tensor.

    Attributes:
        ends: The layers it reaches.
        pads: Whether zeros are put beside the values on some way.
        blocked: What else it goes into; "" where it goes into layers alone.
    """

    ends: tuple[End, ...] = ()
    pads: bool = False
    blocked: str = ""


def follow(trace: Trace, tensor: Tensor, dim: int) -> Flow:
    """Follow a tensor to every layer that it reaches.

    Args:
        trace: The forward pass.
        tensor: Where to start.
        dim: The dimension that holds its channels; negative from the end.

    Returns:
        The ends, or what stands in the way.
    """
    ends: list[End] = []
    pads = False
    waiting = [(tensor, dim % tensor.ndim)]
    while waiting:
        here, at = waiting.pop()
        if id(here) in trace.returned:
            return Flow(blocked="its output is returned by the model")
        for user in dict.fromkeys(trace.users_of(here)):
            if isinstance(user, LayerCall):
                ends.append(End(user, here, at))
                continue
            passage = pass_through(user, here, at)
            if passage is None:
                return Flow(blocked=f"its output goes into {user}")
            pads |= passage.pads
            waiting.extend(passage.outputs)
    return Flow(tuple(ends), pads)


def origin(trace: Trace, tensor: Tensor) -> str:
    """What a tensor comes from, in words: a layer, an operation, or the model's input."""
    here = tensor
    while True:
        maker = trace.maker_of(here)
        if maker is None:
            return "the model's input"
        if isinstance(maker, LayerCall):
            return maker.path
        source = maker.args[0] if maker.args else None
        if not isinstance(source, Tensor) or not _moves(maker, source):
            return str(maker)
        here = source


def _moves(event: Event, source: Tensor) -> bool:
    return any(pass_through(event, source, dim) for dim in range(source.ndim))
