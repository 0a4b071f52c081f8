"""The repeated blocks of a model, in order: what `last_k` and block ranges count.

A block is a composite module that stands in a chain (`nn.Sequential` or `nn.ModuleList`). Where the
members of a chain are stages that hold most of their weight in chains of their own, the blocks are
in there. A mixture of experts is no such chain: its experts are alternatives, not steps.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft.tree import elements, join, own_parameters, walk

_CHAINS = (nn.Sequential, nn.ModuleList)
_ALTERNATIVES = {"experts", "expert", "heads", "head", "branches", "fuse_layers", "pool", "downsample",
                 "shortcut", "classifier"}  # fmt: skip
_LAYERS_OF_A_BLOCK = 3


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Paths of the repeated blocks, in the order in which the model registers them.

    Args:
        model: Any module; it is not run.

    Returns:
        For ResNet-50 the 16 bottlenecks, for ViT-B the 12 encoder blocks; empty where nothing
        repeats.
    """
    # members that are told apart by a number alone, such as Xception's block1 and block2, count
    # where there is no chain: inside a block such members are its parts
    for numbers in (False, True):
        blocks = tuple(path for path, _ in _walk(model, "", in_chain=False, numbers=numbers))
        if len(blocks) > 1:
            return blocks
    return ()


def choose_blocks(model: nn.Module, blocks: str | None, last_k: int | None) -> tuple[str, ...]:
    """Paths of the blocks that a range or a count means.

    Args:
        model: Any module; it is not run.
        blocks: A Python slice such as `0:4` or `-2:`, or single numbers: `0,1,11`.
        last_k: How many blocks from the end.

    Raises:
        ConfigError: Both are given, the model has no blocks, or the choice is empty.
    """
    if blocks is not None and last_k is not None:
        raise ConfigError("peft.blocks and peft.last_k exclude each other; set one of them")
    found = find_blocks(model)
    if not found:
        key = "peft.last_k" if last_k is not None else "peft.blocks"
        raise ConfigError(
            f"{key}: {type(model).__name__} has no chain of repeated blocks; "
            "choose by name instead, with peft.include=[<prefix>]"
        )
    if last_k is not None:
        if isinstance(last_k, bool) or not 1 <= last_k <= len(found):
            raise ConfigError(
                f"peft.last_k={last_k} is out of range: {type(model).__name__} has "
                f"{len(found)} blocks, allowed is 1 to {len(found)}"
            )
        return found[-last_k:]
    return _slice(found, str(blocks), type(model).__name__)


def _slice(found: tuple[str, ...], blocks: str, model: str) -> tuple[str, ...]:
    chosen: list[str] = []
    for part in blocks.split(","):
        try:
            numbers = [int(one) if one.strip() else None for one in part.split(":")]
            if len(numbers) == 1:
                chosen.append(found[numbers[0]])  # type: ignore[index]  # None fails below
            else:
                chosen.extend(found[slice(*numbers)])
        except (ValueError, IndexError, TypeError):
            chosen = []
            break
    if not chosen:
        raise ConfigError(
            f"peft.blocks={blocks} chooses none of the {len(found)} blocks of {model}; "
            f"allowed are slices and numbers from 0 to {len(found) - 1}, such as 0:4, -2: or 0,1"
        )
    return tuple(path for path in found if path in chosen)


def _walk(
    module: nn.Module, path: str, in_chain: bool, numbers: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Blocks with their paths; those inside a stage, where a chain's member is one."""
    chain = isinstance(module, _CHAINS)
    if in_chain and not chain and _is_composite(module):
        inner = list(_members(module, path, chain, numbers))
        if inner and _is_stage(module, [one for _, one in inner]):
            yield from inner
        else:
            yield path, module
        return
    yield from _members(module, path, chain, numbers)


def _members(
    module: nn.Module, path: str, chain: bool, numbers: bool
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if name.lower() not in _ALTERNATIVES:
            yield from _walk(
                child,
                join(path, name),
                numbers=numbers,
                in_chain=chain or (numbers and _is_numbered(module, name)),
            )


def _is_numbered(module: nn.Module, name: str) -> bool:
    """Whether a child is one of several of a kind that are told apart by a number: b1, b2, b3."""
    stem = name.rstrip("0123456789")
    alike = [
        type(child)
        for other, child in module.named_children()
        if stem != name and other.rstrip("0123456789") == stem and other != stem
    ]
    return len(alike) > 1 and len(set(alike)) == 1


def _is_composite(module: nn.Module) -> bool:
    """Three layers with weights or more: a convolution with its norm is not a block."""
    return sum(bool(own_parameters(one)) for _, one in walk(module)) >= _LAYERS_OF_A_BLOCK


def _is_stage(module: nn.Module, inner: list[nn.Module]) -> bool:
    """Whether a chain's member is itself mostly a chain of like blocks."""
    if len({type(one) for one in inner}) != 1:
        return False  # attention and feed-forward of one transformer block
    return 2 * sum(map(elements, inner)) > elements(module)
