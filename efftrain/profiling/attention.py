"""Multiply-accumulates of attention, fused in any of the ways that torch fuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from efftrain.graph.observer import Call


def attention_macs(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Scores and their product with the values, for all heads of the query.

    Args:
        query: [*, heads, q, d].
        key: [*, key heads, k, d]; fewer heads are shared (grouped-query attention).
        value: [*, key heads, k, e].

    Returns:
        heads x q x k x (d + e). A causal mask does not halve it: kernels differ in what they skip.
    """
    return (query.numel() // query.shape[-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def attention(call: Call) -> int:
    """`scaled_dot_product_attention`. Repairs a missing formula for the CPU (torch 2.13)."""
    return attention_macs(*call.args[:3])


def attention_backward(call: Call) -> int:
    """Four products, two for each of forward's; the fifth is `recomputed_scores`."""
    return 2 * attention_macs(*call.args[1:4])


def recomputed_scores(call: Call) -> int:
    """Kernels that do not keep the scores make them again: query x key."""
    query, key = call.args[1:3]
    return query.numel() * key.shape[-2]


def packed_attention(call: Call) -> int:
    """`nn.MultiheadAttention` as one operator: query [N, q, D], key [N, k, D].

    The three input projections, the attention and the output projection. Repairs a missing formula.
    """
    query, key = call.args[:2]
    return _multihead(query, key, call.args[3])


def encoder_layer(call: Call) -> int:
    """`nn.TransformerEncoderLayer` as one operator: attention and two linear layers.

    Repairs a missing formula.
    """
    source, width = call.args[:2]
    first, second = call.args[14], call.args[16]
    tokens = source.numel() // source.shape[-1]
    return _multihead(source, source, width) + tokens * (first.numel() + second.numel())


def _multihead(query: Tensor, key: Tensor, width: int) -> int:
    batch = query.numel() // query.shape[-1] // query.shape[-2]
    asking, asked = query.shape[-2], key.shape[-2]
    projections = 2 * asking * width * width + 2 * asked * width * width
    return batch * (projections + 2 * asking * asked * width)


_KERNELS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)

ATTENTION: dict[str, Callable[[Call], Any]] = {
    **dict.fromkeys(_KERNELS, attention),
    "_scaled_dot_product_attention_math": attention,
    "flex_attention": attention,
    "_native_multi_head_attention": packed_attention,
    "_transformer_encoder_layer_fwd": encoder_layer,
}

ATTENTION_BACKWARD = dict.fromkeys(
    [f"{kernel}_backward" for kernel in _KERNELS], attention_backward
)
