"""Multiply-accumulates of recurrent layers that torch runs as one operator.

Where it does not (a GRU on the CPU, a cell), they are matrix products and counted as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from efftrain.graph.observer import Call


def _steps(sequence: Tensor) -> int:
    """Time steps x samples, from [time, batch, features] or a packed [steps, features]."""
    return sequence.numel() // sequence.shape[-1]


def _matrices(weights: list[Tensor]) -> int:
    return sum(weight.numel() for weight in weights if weight.dim() == 2)


def mkldnn_layer(call: Call) -> int:
    """One layer in one direction: the gates' weights for the input and for the state.

    Repairs a missing formula: an LSTM on the CPU counts as 0 in torch 2.13 and 2.15.
    """
    return _steps(call.args[0]) * (call.args[1].numel() + call.args[2].numel())


def mkldnn_layer_backward(call: Call) -> tuple[int, int]:
    """For the inputs and for the weights: the kernel always makes both, each as many as forward."""
    once = mkldnn_layer(call)
    return once, once


def cudnn_layers(call: Call) -> int:
    """All layers and directions: each weight matrix meets each time step of each sample once."""
    return _steps(call.args[0]) * _matrices(call.args[1])


def cudnn_layers_backward(call: Call) -> tuple[int, int]:
    """For the inputs and, where asked for (the mask's last), for the weights."""
    once = cudnn_layers(call)
    mask: Sequence[bool] = call.args[-1]
    return once, once * bool(mask[3])


RECURRENT: dict[str, Callable[[Call], int]] = {
    "mkldnn_rnn_layer": mkldnn_layer,
    "_cudnn_rnn": cudnn_layers,
}

RECURRENT_BACKWARD: dict[str, Callable[[Call], tuple[int, int]]] = {
    "mkldnn_rnn_layer_backward": mkldnn_layer_backward,
    "_cudnn_rnn_backward": cudnn_layers_backward,
}
