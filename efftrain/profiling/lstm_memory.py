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
    """Bytes that one layer keeps for backward; parts begin on new pages.

    Gates of each step; hidden states and the gradients of both with one more step at the start, in rows
    that are as long as the wider of input and state; cell states and their gradients. Gradients are in
    32 bits, the rest as the input is.
    """
    steps, batch, inputs, hidden = _sizes(call)
    width, wider = call.args[0].element_size(), max(inputs, hidden)
    each, rows = steps * batch, 2 * (steps + 1) * batch
    gates = _pages(width * each * _row(4 * hidden, width))
    states = _pages(width * rows * _row(wider, width)) + 2 * _pages(4 * rows * _row(wider, 4))
    cells = _pages(width * rows * hidden) + _pages(4 * rows * hidden)
    return gates + states + cells + _pages(width * each * _row(hidden, width))


def lstm_scratch(call: Call) -> int:
    """Both weights in rows of their own length, the two biases as one, and all gates once more."""
    steps, batch, inputs, hidden = _sizes(call)
    width = call.args[0].element_size()
    if width < 4:  # the gates stand in the workspace alone
        return width * 4 * hidden * (inputs + hidden + 1)
    row = _row(4 * hidden, width)
    return 4 * ((inputs + hidden) * row + 4 * hidden + steps * batch * row)


def lstm_backward_scratch(call: Call) -> int:
    """As forward, and both weights once more where their rows are not as oneDNN wants them.

    In 16 bits: gradients of input and weights in 32 bits, the latter once more in rows of their own.
    """
    steps, batch, inputs, hidden = _sizes(call)
    width = call.args[0].element_size()
    if width == 4:
        again = sum(_row(size, 4) for size in (inputs, hidden) if _row(size, 4) != size)
        return lstm_scratch(call) + 4 * 4 * hidden * again
    sides = steps * batch * (inputs + hidden)
    weights = (inputs + hidden) * (4 * hidden + _row(4 * hidden, 4))
    held = 4 * (sides + weights) + lstm_scratch(call)
    return held - sum(tensor.numel() * tensor.element_size() for tensor in call.outputs)


def _sizes(call: Call) -> tuple[int, int, int, int]:
    """Steps, batch, width of the input, width of the state."""
    steps, batch, inputs = call.args[0].shape
    return steps, batch, inputs, call.args[1].shape[0] // 4


def _row(size: int, width: int) -> int:
    """Elements from one row to the next: whole cache lines, and no multiple of 256 elements."""
    line = _LINE // width
    row = -(-size // line) * line
    return row + line if row % 256 == 0 else row


def _pages(held: int) -> int:
    return -(-held // _PAGE) * _PAGE
