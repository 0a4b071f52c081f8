"""What a convolution on the CPU takes beside its result.

oneDNN (3.12) computes on copies: channels in blocks of as many as fit into a vector register, padded to
whole blocks. Source and result stand in blocks together, the weights too; then the result is copied to
where torch wants it. Where oneDNN has no kernel of its own it multiplies matrices, on a copy of the image
in which each pixel stands as often as kernels cover it; so does torch's own kernel (`Slow2d`).

Left out, as small or not known from shapes: buffers of oneDNN's brgemm kernels, sums over threads of
weight gradients, padded biases. Compared on 347 layers of 20 networks with AVX-512 and AVX2; channels
last and three dimensions were off by up to 12 % of a call on AVX2. Other processors are not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from efftrain.graph.observer import Call


@dataclass(frozen=True)
class _Convolution:
    """A convolution from an image to a result; a transposed one goes from the result to the image.

    Attributes:
        image: Sizes of the wider side, [N, C, ...].
        result: Sizes of the other side.
        kernel: Sizes of the kernel.
        stride: Of the kernel's steps.
        groups: Of channels.
        width: Bytes of an element.
        last: Whether channels come last in memory; then nothing but the weights is copied.
        weight_copy_bytes: Of weights whose channels do not come last, where they should.
    """

    image: Sequence[int]
    result: Sequence[int]
    kernel: Sequence[int]
    stride: Sequence[int]
    groups: int
    width: int
    last: bool
    weight_copy_bytes: int

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.image[1] == self.result[1] == self.groups

    @property
    def pointwise(self) -> bool:
        return math.prod(self.kernel) == 1

    @property
    def block(self) -> int | None:
        """Channels of a block; None where oneDNN multiplies matrices."""
        if self.groups == 1 or self.depthwise:
            return _register()
        each = (self.image[1] // self.groups, self.result[1] // self.groups)
        fitting = (b for b in (16, 8, 4) if b <= _register() and not any(c % b for c in each))
        return next(fitting, None)

    def image_bytes(self, block: int = 1) -> int:
        return self.width * self.image[0] * _up(self.image[1], block) * math.prod(self.image[2:])

    def result_bytes(self, block: int = 1) -> int:
        return self.width * self.result[0] * _up(self.result[1], block) * math.prod(self.result[2:])

    def weight_bytes(self, block: int = 1, image_block: int = 1) -> int:
        each = self.image[1] // self.groups
        into = _up(self.result[1], block) * (_up(each, image_block) if self.groups == 1 else each)
        return self.width * into * math.prod(self.kernel)

    def columns_bytes(self) -> int:
        """The image of one sample and group, each pixel once for each place of the kernel."""
        each = self.image[1] // self.groups * math.prod(self.kernel) * math.prod(self.result[2:])
        return 0 if self.pointwise and not self.strided else self.width * each

    @property
    def strided(self) -> bool:
        return any(step > 1 for step in self.stride)

    def forward_peak(self) -> int:
        """From the image to the result."""
        result = self.result_bytes()
        block = self.block
        if self.last:
            return result + self.weight_copy_bytes + self.weight_bytes(_register())
        if block is None:
            return result + torch.get_num_threads() * self.columns_bytes()
        # a few channels, those of a picture, are read where they are
        plain = self.groups == 1 and self.image[1] < block and not self.pointwise
        source = 0 if plain else self.image_bytes(block)
        weights = self.weight_bytes(block, 4 // self.width if plain else block)
        blocked = self.result_bytes(block)
        return max(
            source + weights + blocked + self._picked() + self._sums(result), blocked + result
        )

    def image_peak(self) -> int:
        """From the result's gradient to the image's."""
        image = self.image_bytes()
        block = self.block
        if self.last:
            return image + self.weight_copy_bytes + self.weight_bytes(1, _register())
        if block is None:
            return image + self.columns_bytes()
        weights = self.weight_bytes(block, block)
        if self.strided and self._channels_last(block):
            weights *= 32 if self.depthwise else 1
            return max(self.result_bytes() + weights + image, 3 * image)
        blocked = self.image_bytes(block)
        working = self.result_bytes(block) + weights + blocked + self._sums(image)
        return max(working, blocked + image)

    def weight_peak(self) -> int:
        """From both to the weights' gradient."""
        weights = self.weight_bytes()
        block = self.block
        if self.last:
            return self.weight_copy_bytes + self._last_weight_peak()
        if block is None or self._by_matrices(block):
            return weights + self._matrix_bytes()
        few = self.groups == 1 and self.image[1] < 4 and not self.pointwise
        source = 0 if few else self.image_bytes(block)
        blocked = self.weight_bytes(block, 1 if few else block)
        turned = 0 if self.pointwise or self.depthwise else source + self.result_bytes()
        working = source + self.result_bytes(block) + blocked + self._wide_weights(turned)
        return max(working + self._picked(), blocked + weights)

    def _last_weight_peak(self) -> int:
        """Channels last: each group's weights in blocks both ways, 256 numbers where 1 is needed."""
        block, weights = _register(), self.weight_bytes()
        if self.groups == 1 and max(self.kernel) > 14:
            return weights + self._matrix_bytes()
        if self.depthwise and not self._by_matrices(block):
            blocked = weights
        else:
            into, out = self.image[1] // self.groups, self.result[1] // self.groups
            into = into if self.groups == 1 and into < 4 else _up(into, block)
            each = self.width * into * _up(out, block) * math.prod(self.kernel)
            blocked = self.groups * each
        wide = 0 if self.width == 4 else 2 * blocked
        return blocked + max(wide, 2 * weights)

    def _picked(self) -> int:
        """With steps, a kernel of one pixel first picks the pixels that it needs, sample by sample."""
        if not (self.pointwise and self.strided) or self.groups > 1:
            return 0
        places = math.prod(self.result[2:])
        return torch.get_num_threads() * self.width * self.image[1] * places

    def _sums(self, produced: int) -> int:
        """In 16 bits, a kernel of one pixel sums a sample up in 32 bits."""
        if self.width == 4 or not self.pointwise or self.groups > 1:
            return 0
        return torch.get_num_threads() * 2 * produced // self.image[0]

    def _wide_weights(self, turned: int) -> int:
        """In 16 bits, weights are summed up in 32 bits, over samples that are turned round before."""
        if self.width == 4:
            return 0
        return 2 * self.weight_bytes() + torch.get_num_threads() * turned // self.image[0]

    def _channels_last(self, block: int) -> bool:
        """Whether the image's gradient is computed with channels last, where the kernel has steps."""
        if self.groups == 1:
            return True
        if self.depthwise:
            return self.width < 4
        return self.image[1] // self.groups >= 2 * block

    def _by_matrices(self, block: int) -> bool:
        """Whether oneDNN has no kernel of its own for the weights' gradient."""
        small = any(size < step for size, step in zip(self.image[2:], self.kernel, strict=True))
        if self.depthwise:
            return self.kernel[-1] > 3 or small
        if block < 16 and (small or self.width < 4):
            return True
        return block < 8 or max(self.kernel) > (14 if self.width == 4 else 16)

    def _matrix_bytes(self) -> int:
        """Weights of each thread, four times as long as needed (oneDNN books bytes as floats)."""
        threads = torch.get_num_threads()
        places = math.prod(self.result[2:])
        apart = places / threads < 256 and (self.image[0] > 1 or self.groups > 2)
        each = threads if apart else 1
        summed = 4 * self.weight_bytes() if self.width < 4 else 0
        return each * (4 * self.weight_bytes() + self.columns_bytes()) + summed


def convolution_scratch(call: Call) -> int:
    """Of `convolution(x, weight, bias, stride, padding, dilation, transposed, ..., groups)`."""
    x, weight = call.args[0], call.args[1]
    backend = _backend(call.args[:9], [])
    transposed = call.args[6]
    y = call.outputs[0]
    found = _found(x, weight, y, call.args[3:9])
    if backend == "Slow2d":
        return x.shape[0] * found.columns_bytes()
    if backend != "oneDNN":
        return 0
    peak = found.image_peak() if transposed else found.forward_peak()
    return _copy_bytes(found, x) + peak - _bytes(y)


def convolution_backward_scratch(call: Call) -> int:
    """Of `convolution_backward(gradient, x, weight, bias_sizes, stride, ..., output_mask)`.

    The gradient of the input comes first and stays while that of the weights is computed.
    """
    gradient, x, weight = call.args[:3]
    mask = call.args[10]
    backend = _backend((x, weight, None, *call.args[4:10]), call.args[3])
    found = _found(x, weight, gradient, call.args[4:10])
    if backend == "Slow2d":
        return x.shape[0] * found.columns_bytes() if mask[1] else 0
    if backend != "oneDNN":
        return 0
    transposed = call.args[7]
    by_data = found.forward_peak() if transposed else found.image_peak()
    first = by_data if mask[0] else 0
    second = (_bytes(x) if mask[0] else 0) + (found.weight_peak() if mask[1] else 0)
    results = sum(_bytes(tensor) for tensor in call.outputs)
    copies = _copy_bytes(found, x) + _copy_bytes(found, gradient)
    return copies + max(first, second) - results


def _backend(args: Sequence[Any], bias: Sequence[int]) -> str:
    """Who computes it, as torch itself decides; it has no public name for that.

    Its name for oneDNN's transposed convolution cannot be printed.
    """
    x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
    if x.device.type != "cpu":
        return "other"
    chosen = cast(Any, torch)._C._select_conv_backend(
        x, weight, None, stride, padding, dilation, transposed, output_padding, groups, bias
    )
    name = str(chosen).rpartition(".")[2]
    if name == "Mkldnn" or (transposed and name == "???"):
        return "oneDNN"
    return name


def _found(x: Tensor, weight: Tensor, y: Tensor, settings: Sequence[Any]) -> _Convolution:
    """The convolution between two tensors; settings begin with the stride."""
    stride, _, _, transposed, _, groups = settings
    last = x.dim() == 4 and any(
        tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        for tensor in (x, weight)
    )
    turned = last and not weight.is_contiguous(memory_format=torch.channels_last)
    image, result = (y, x) if transposed else (x, y)
    return _Convolution(
        image=tuple(image.shape),
        result=tuple(result.shape),
        kernel=tuple(weight.shape[2:]),
        stride=tuple(stride),
        groups=groups,
        width=x.element_size(),
        last=last,
        weight_copy_bytes=_bytes(weight) if turned else 0,
    )


def _copy_bytes(found: _Convolution, tensor: Tensor) -> int:
    """Of a tensor that lies in memory otherwise than the kernel reads it."""
    order = torch.channels_last if found.last else torch.contiguous_format
    there = tensor.is_contiguous(memory_format=order)
    return 0 if there else _bytes(tensor)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _up(size: int, block: int) -> int:
    return -(-size // block) * block


@cache
def _register() -> int:
    """32-bit numbers in a vector register of this machine."""
    return 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
