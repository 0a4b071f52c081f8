"""Arithmetic other than multiply-accumulates: norms, activations, adds, softmax, pooling.

One operation is one addition, subtraction, multiplication, division or comparison, or one call of
exp, log, sqrt, rsqrt, erf, tanh, sin, cos or pow. A composed function counts what its textbook form
needs per element; kernels may need fewer. Moving, selecting and creating values costs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from efftrain.graph.observer import Call

Formula = Callable[[Call], int]

# Operations for each element of the result; any other operator that torch tags as pointwise is one.
PER_RESULT = {
    "add": 1, "sub": 1, "rsub": 1, "sum": 1,
    "sigmoid": 3,  # 1 / (1 + exp(-x)), the sign not counted
    "silu": 4,  # x sigmoid(x)
    "gelu": 5,  # x / 2 (1 + erf(x / sqrt 2))
    "mish": 5,  # x tanh(log(1 + exp x))
    "softplus": 3,
    "hardtanh": 2,  # two comparisons; so is ReLU6
    "clamp": 2,
    "hardsigmoid": 4,  # relu6(x + 3) / 6
    "hardswish": 5,  # x relu6(x + 3) / 6
    "leaky_relu": 2,
    "elu": 3,
    "addcmul": 3,
    "addcdiv": 3,
    "lerp": 3,
    "_softmax": 5,  # maximum, subtract, exp, sum, divide
    "_safe_softmax": 5,
    "_log_softmax": 5,  # maximum, subtract, exp, sum, subtract
    "threshold_backward": 2,  # compare, multiply by the mask
    "hardtanh_backward": 3,
    "sigmoid_backward": 3,  # g y (1 - y)
    "tanh_backward": 3,  # g (1 - y^2)
    "silu_backward": 8,  # sigmoid; g s (1 + x (1 - s))
    "gelu_backward": 10,  # cdf (4 without the product by x), density (4), x density + cdf, g
    "hardsigmoid_backward": 4,
    "hardswish_backward": 6,
    "leaky_relu_backward": 3,
    "elu_backward": 4,
    "_softmax_backward_data": 4,  # y (g - sum(g y))
    "_log_softmax_backward_data": 4,  # g - exp(y) sum(g)
    "native_dropout": 2,
    "native_dropout_backward": 2,
    "upsample_bilinear2d": 11,  # three interpolations of 3, two weights
    "_upsample_bilinear2d_aa": 11,
    "upsample_bicubic2d": 35,  # five cubic sums of 4 products and 3 additions
    "nll_loss_backward": 1,
    "div": 1,
    "floor_divide": 1,
    "remainder": 1,
}  # fmt: skip

# Operations for each element of the first argument: reductions, and gradients that are added up.
PER_ARGUMENT = {
    "sum": 1, "mean": 1, "amax": 1, "amin": 1, "max": 1, "min": 1, "prod": 1, "any": 1, "all": 1,
    "argmax": 1, "argmin": 1, "cumsum": 1, "cumprod": 1, "logsumexp": 3, "var": 3, "var_mean": 4,
    "std": 3, "linalg_vector_norm": 2, "norm": 2, "count_nonzero": 1,
    "_adaptive_avg_pool2d": 1, "_adaptive_avg_pool3d": 1, "adaptive_max_pool2d": 1,
    "nll_loss_forward": 1, "nll_loss2d_forward": 1, "mse_loss": 3, "smooth_l1_loss": 4,
    "binary_cross_entropy_with_logits": 6,
    "max_pool2d_with_indices_backward": 1, "embedding_dense_backward": 1,
    "adaptive_max_pool2d_backward": 1, "upsample_nearest2d_backward": 1,
    "upsample_bilinear2d_backward": 11,
}  # fmt: skip

# Values moved, chosen or made; nothing is computed from them.
_MOVES = """
    clone copy copy_ _to_copy contiguous cat stack index index_select gather embedding fill fill_
    zero zero_ empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty
    new_empty_strided new_zeros new_ones new_full constant_pad_nd reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d roll flip repeat
    masked_fill masked_fill_ where index_put index_put_ _index_put_impl_ scatter scatter_
    index_fill index_fill_ select_scatter slice_scatter index_copy index_copy_
    slice_backward select_backward as_strided as_strided_ tril triu bernoulli bernoulli_ uniform_
    normal_ random_ exponential_ im2col split_with_sizes_copy unsafe_split unsafe_split_with_sizes
    _unsafe_view lift_fresh lift_fresh_copy detach_ alias_copy _reshape_alias_copy _local_scalar_dense
    upsample_nearest1d upsample_nearest2d upsample_nearest3d pixel_shuffle pixel_unshuffle
    native_channel_shuffle channel_shuffle one_hot nonzero masked_select set_ resize_ resize_as_
    requires_grad_ is_same_size _assert_async _assert_tensor_metadata dropout zeros
    repeat_interleave unbind_copy diagonal_copy diag_embed item equal
"""
MOVES = frozenset(_MOVES.split())


def norm(call: Call) -> int:
    """LayerNorm, GroupNorm: mean 1; variance 3; (x - mean) rstd 2; weight and bias 1 each."""
    parts = 6
    if call.operator.name == "native_layer_norm":
        parts += sum(isinstance(a, Tensor) for a in call.args[2:4])
    elif any(isinstance(a, Tensor) for a in call.args[1:3]):
        parts += 2
    return parts * call.args[0].numel()


def rms_norm(call: Call) -> int:
    """Squares and their sum 2, the product with 1 / rms 1, with the weight 1."""
    return (3 + isinstance(call.args[2], Tensor)) * call.args[0].numel()


def batch_norm(call: Call) -> int:
    """Scale and shift of each channel 2; in training also mean 1 and variance 3."""
    training = call.args[5] if len(call.args) > 5 and isinstance(call.args[5], bool) else None
    if training is None:  # the operators without that argument say it by name
        training = "no_training" not in call.operator.name
    return (6 if training else 2) * call.args[0].numel()


def batch_norm_backward(call: Call) -> tuple[int, int]:
    """For the input: g scale 1 on stored statistics, else 9 with the sums; for the weights 4.

    The sums of g and of g (x - mean) are both the weights' gradients and part of the input's.
    """
    elements = call.args[0].numel()
    mask = call.args[-1]
    training = call.args[7] if isinstance(call.args[7], bool) else True
    weights = 4 * elements * bool(mask[1] or mask[2])
    inputs = (5 + 4 * (not weights) if training else 1) * elements * bool(mask[0])
    return inputs, weights


def norm_backward(call: Call) -> tuple[int, int]:
    """For the input 11: g w, two sums of 2, the normalised x of 2, and 4; for the weights 3."""
    elements = call.args[0].numel()
    mask = call.args[-1]
    return 11 * elements * bool(mask[0]), 3 * elements * bool(mask[1] or mask[-1])


def window(call: Call) -> int:
    """Pooling: one operation for each element of the window of each output."""
    return _window(call, call.args[1]) * call.outputs[0].numel()


def window_backward(call: Call) -> int:
    """Average pooling: one addition for each element of the window of each output."""
    return _window(call, call.args[2]) * call.args[0].numel()


def _window(call: Call, sides: list[int]) -> int:
    """Elements of a window whose sides may be given once for all dimensions."""
    dimensions = 3 if "3d" in call.operator.name else 2
    return math.prod(sides * dimensions if len(sides) == 1 else sides)


def accumulated(call: Call) -> int:
    """One addition for each value that is added into place."""
    values = [t for t in call.inputs if t.is_floating_point()]
    return min((t.numel() for t in values[1:]), default=0)


def gated(call: Call) -> int:
    """GLU: sigmoid 3 and a product, for each output."""
    return 4 * call.outputs[0].numel()


def recurrent_cell(call: Call) -> int:
    """A cell's gates: their sum 1, sigmoid or tanh 3, and a product 1."""
    return 5 * call.args[0].numel()


BY_CALL: dict[str, Formula] = {
    "native_layer_norm": norm,
    "native_group_norm": norm,
    "_fused_rms_norm": rms_norm,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "_batch_norm_with_update": batch_norm,
    "_batch_norm_no_update": batch_norm,
    "cudnn_batch_norm": batch_norm,
    "max_pool2d_with_indices": window,
    "max_pool3d_with_indices": window,
    "avg_pool2d": window,
    "avg_pool3d": window,
    "avg_pool2d_backward": window_backward,
    "avg_pool3d_backward": window_backward,
    "index_add": accumulated,
    "index_add_": accumulated,
    "scatter_add": accumulated,
    "scatter_add_": accumulated,
    "glu": gated,
    "_thnn_fused_lstm_cell": recurrent_cell,
    "_thnn_fused_gru_cell": recurrent_cell,
}

BY_GRADIENT: dict[str, Callable[[Call], tuple[int, int]]] = {
    "native_batch_norm_backward": batch_norm_backward,
    "batch_norm_backward": batch_norm_backward,
    "native_layer_norm_backward": norm_backward,
    "native_group_norm_backward": norm_backward,
}


def elementwise_operations(call: Call) -> int | tuple[int, int] | None:
    """Operations of a call that are no multiply-accumulates.

    Returns:
        Their number; for the gradient of a norm, those for its input and for its weights; None
        where no formula is known.
    """
    operator = call.operator
    name = operator.name
    bare = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if name in BY_GRADIENT:
        return BY_GRADIENT[name](call)
    if name in BY_CALL:
        return BY_CALL[name](call)
    if (name in ("index_put", "index_put_", "_index_put_impl_")) and _accumulates(call):
        return call.args[2].numel()
    if operator.view or name in MOVES or bare in MOVES or not call.inputs:
        return 0
    if bare.startswith("_foreach_"):
        return sum(t.numel() for t in call.args[0])
    if bare in PER_ARGUMENT:
        return PER_ARGUMENT[bare] * call.args[0].numel()
    if bare in PER_RESULT or operator.pointwise:
        return PER_RESULT.get(bare, 1) * sum(t.numel() for t in call.outputs[:1])
    return None


def _accumulates(call: Call) -> bool:
    given: Any = call.args[3] if len(call.args) > 3 else call.kwargs.get("accumulate", False)
    return bool(given)
