"""Find the module that turns features into the answer: the classifier or the language model head.

What a library declares is believed first (timm's configuration, Hugging Face's accessor and base
model); then the top-level module that such models keep their head in; then the last layer. What is
found has to produce as many outputs as the model says it has, where it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.tree import has_parameters, own_parameters, walk

_HEAD_NAMES = (
    "lm_head", "classifier", "fc", "heads", "head", "score", "qa_outputs", "classification_head",
    "last_linear", "output", "logits",
)  # fmt: skip
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_head(model: nn.Module, head: str | None = None) -> str:
    """The path of the module that produces a model's output.

    Args:
        model: Any module; it is not run.
        head: A path to take instead of searching.

    Returns:
        A dotted path, such as `fc`, `classifier.1` or `heads.head`. Of several heads (a distilled
        model's), the first.

    Raises:
        ConfigError: `head` is not in the model, or none can be found; the message names candidates.
    """
    return find_heads(model, head)[0]


def find_heads(model: nn.Module, head: str | None = None) -> tuple[str, ...]:
    """As `find_head`, all of them: a distilled model has one for the label and one for the teacher.

    Args:
        model: Any module; it is not run.
        head: A path to take instead of searching.
    """
    if head is not None:
        return (_checked_path(model, head),)
    for search in (_declared_by_timm, _declared_by_accessor, _outside_base_model, _by_name, _last):
        found = tuple(dict.fromkeys(search(model)))
        if found:
            return found
    candidates = [path for path, _ in _output_layers(model)][-4:]
    raise ConfigError(
        f"peft.head: no head found in {type(model).__name__}; name it with peft.head=<path>"
        + (f", for example {' or '.join(reversed(candidates))}" if candidates else "")
    )


def _checked_path(model: nn.Module, head: str) -> str:
    modules = dict(walk(model, duplicates=True))
    if not head or head not in modules:
        raise ConfigError(
            f"peft.head={head} is not a module of {type(model).__name__}"
            f"{did_you_mean(head, modules)}; allowed is any path from model.named_modules()"
        )
    if not has_parameters(modules[head]):
        raise ConfigError(f"peft.head={head} has no parameters; name the layer that has the weight")
    return head


def _declared_by_timm(model: nn.Module) -> Iterator[str]:
    """The `classifier` entry that every timm model carries in its configuration."""
    config: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict):
        declared = cast("dict[str, object]", config).get("classifier")
    else:
        declared = getattr(config, "classifier", None)
    names = (declared,) if isinstance(declared, str) else declared
    if isinstance(names, tuple | list):
        modules = dict(walk(model, duplicates=True))
        for name in cast("tuple[str, ...]", names):
            if name in modules and has_parameters(modules[name]):
                yield name


def _declared_by_accessor(model: nn.Module) -> Iterator[str]:
    """What the library's own accessor returns, found by identity."""
    for accessor in ("get_output_embeddings", "get_classifier"):
        get: Callable[[], object] | None = getattr(model, accessor, None)
        if not callable(get):
            continue
        try:
            returned = get()
        except Exception:  # some models have the method only to refuse it
            continue
        several = isinstance(returned, tuple | list)
        for module in cast("tuple[object, ...]", returned if several else (returned,)):
            if isinstance(module, nn.Module) and has_parameters(module):
                yield from (path for path, one in walk(model) if one is module and path)


def _outside_base_model(model: nn.Module) -> Iterator[str]:
    """Everything beside a Hugging Face model's backbone."""
    base: object = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or base is model:
        return
    for name, child in model.named_children():
        inside = any(one is base for one in child.modules())
        # a last norm may stand there, too; what turns features into an answer has a matrix
        if not inside and _output_layers(child):
            yield _descend(name, child)


def _by_name(model: nn.Module) -> Iterator[str]:
    """A top-level module under a usual name, if what it ends in is an output layer."""
    sizes = _output_sizes(model)
    children = dict(model.named_children())
    for name in _HEAD_NAMES:
        child = children.get(name)
        if child is None:
            continue
        layers = _output_layers(child)
        if layers and (not sizes or layers[-1][1] in sizes):
            yield _descend(name, child)
            return


def _last(model: nn.Module) -> Iterator[str]:
    """The last layer of the output's size; without a size, the last layer if nothing follows it."""
    sizes = _output_sizes(model)
    layers = _output_layers(model)
    if sizes:
        fitting = [path for path, size in layers if size in sizes]
        yield from fitting[-1:]
        return
    if getattr(model, "num_classes", None) == 0:  # built as a feature extractor
        return
    holders = [path for path, module in walk(model) if own_parameters(module)]
    if layers and holders and layers[-1][0] == holders[-1]:
        yield layers[-1][0]


def _descend(path: str, module: nn.Module) -> str:
    """From a container to the last of its members that has parameters.

    A torchvision classifier is a chain of pretrained layers of which only the last is the head.
    """
    while isinstance(module, _CONTAINERS):
        members = [(name, one) for name, one in module.named_children() if has_parameters(one)]
        name, module = members[-1]
        path = f"{path}.{name}"
    return path


def _output_layers(model: nn.Module) -> list[tuple[str, int]]:
    """Paths and output sizes of linear layers and convolutions, in the order of registration."""
    return [
        (path, module.out_features if isinstance(module, nn.Linear) else module.out_channels)
        for path, module in walk(model)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]


def _output_sizes(model: nn.Module) -> set[int]:
    """How many outputs the model says it has; empty where it does not say."""
    config: object = getattr(model, "config", None)
    declared = [getattr(model, "num_classes", None)]
    declared += [getattr(config, name, None) for name in ("num_labels", "vocab_size")]
    return {size for size in declared if isinstance(size, int) and size > 0}
