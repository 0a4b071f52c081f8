"""Memory of oneDNN's LSTM layer, which torch uses on the CPU.

Besides its results the layer keeps a workspace for backward. On tensors without values torch gives the
workspace no elements, so its size is worked out here, as oneDNN lays it out (rnn_utils.cpp,
`get_scratchpad_and_workspace_sizes`; equal to what torch 2.13 with oneDNN 3.12 allocates).
"""

from __future__ import annotations

from efftrain.graph.observer import Call

_PAGE = 4096
_LINE = 64


def lstm_workspace_bytes(call: Call) -> int:
    """Bytes that one layer keeps for backward, in 32-bit numbers; parts begin on new pages.

    Gates of each step; hidden states, their gradients and the layer's input with one more step at the
    start, in rows that are as long as the wider of input and state; cell states and their gradients.
    """
    steps, batch, inputs, hidden = _sizes(call)
    row = _row(max(inputs, hidden))
    gates = _pages(steps * batch * _row(4 * hidden))
    states = _pages(2 * (steps + 1) * batch * row)
    cells = _pages(2 * (steps + 1) * batch * hidden)
    return gates + 3 * states + 2 * cells + _pages(steps * batch * _row(hidden))


def lstm_scratch(call: Call) -> int:
    """Both weights in rows of their own length, the two biases as one, and all gates once more."""
    steps, batch, inputs, hidden = _sizes(call)
    row = _row(4 * hidden)
    return 4 * ((inputs + hidden) * row + 4 * hidden + steps * batch * row)


def lstm_backward_scratch(call: Call) -> int:
    """As forward, and both weights once more where their rows are not as oneDNN wants them."""
    inputs, hidden = _sizes(call)[2:]
    again = sum(_row(width) for width in (inputs, hidden) if _row(width) != width)
    return lstm_scratch(call) + 4 * 4 * hidden * again


def _sizes(call: Call) -> tuple[int, int, int, int]:
    """Steps, batch, width of the input, width of the state."""
    steps, batch, inputs = call.args[0].shape
    return steps, batch, inputs, call.args[1].shape[0] // 4


def _row(width: int) -> int:
    """Elements from one row to the next: whole cache lines, and no multiple of 256 elements."""
    line = _LINE // 4
    row = -(-width // line) * line
    return row + line if row % 256 == 0 else row


def _pages(elements: int) -> int:
    return -(-4 * elements // _PAGE) * _PAGE
