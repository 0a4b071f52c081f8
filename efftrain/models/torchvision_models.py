"""Image classifiers of torchvision, with its own weights, a file's, or none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.models.chatter import shows_bars
from efftrain.models.hub import loading, local_path
from efftrain.models.interface import ModelInterface, declare, interface_of
from efftrain.models.new_head import replace_head, say_new_head
from efftrain.models.weights import fit_weights, read_weights
from efftrain.optional import require
from efftrain.peft import find_head
from efftrain.peft.patterns import did_you_mean

IMAGENET_CLASSES = 1000
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's weights were trained with, and most of timm's."""

_OURS = frozenset({"weights", "weights_backbone", "progress", "num_classes"})

_AUXILIARY = {"aux_logits": False, "init_weights": True}
"""GoogLeNet and Inception: no second classifier beside the first; random weights as they are by
default today, without the warning that a later default will differ."""

_FIXED_FROM = 128
"""torchvision names the smallest image of every model: up to 75 pixels for those of any size, 224
and more for those that were built for one size."""


def torchvision_model(
    name: str | None = None,
    pretrained: bool | str = False,
    num_classes: int | None = 10,
    kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a classifier of torchvision.

    Args:
        name: As `torchvision.models.list_models()` has it, such as `resnet50`.
        pretrained: False for random weights; True for torchvision's best; the name of a set of
            weights such as `IMAGENET1K_V1`; or a .pth or .safetensors file with a state dict.
        num_classes: Width of the head; a new one where the weights have another. None: theirs, and
            1,000 for random weights.
        kwargs: For the model's own constructor, such as `dropout`.

    Returns:
        Takes [N, 3, H, W]; returns [N, num_classes].

    Raises:
        ConfigError: No such model, weights or argument.
        CheckpointError: The file is missing, damaged or of another model.
        MachineError: torchvision is not installed, or its weights cannot be downloaded.
    """
    models = require("torchvision", extra="timm").models
    if name is None:
        raise ConfigError("model.name: needs a value such as model.name=resnet50")
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(
            f"model.name: torchvision has no classifier '{name}'{did_you_mean(name, known)}"
        )
    build, extra = _builder(models, name, kwargs or {})
    if pretrained is False:
        model = build(weights=None, num_classes=num_classes or IMAGENET_CLASSES, **extra)
    elif _is_file(models, name, pretrained):
        model = _from_file(build, extra, Path(str(pretrained)).expanduser(), num_classes)
    else:
        weights = _weights(models, name, pretrained)
        with loading(f"{name} {weights.name}"):
            model = build(weights=weights, progress=shows_bars(), **extra)
    if num_classes is not None:
        new = replace_head(model, num_classes)
        if new is not None:
            say_new_head(new, num_classes)
    _declare(models, name, model)
    return model


def _builder(
    models: Any, name: str, kwargs: Mapping[str, Any]
) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    build = models.get_model_builder(name)
    taken = sorted(_OURS & kwargs.keys())
    if taken:
        raise ConfigError(
            f"model.kwargs.{taken[0]}: write model.pretrained or model.num_classes instead"
        )
    network = inspect.getmodule(build)
    has_auxiliary = network is not None and network.__name__.endswith((".googlenet", ".inception"))
    return build, {**(_AUXILIARY if has_auxiliary else {}), **kwargs}


def _is_file(models: Any, name: str, pretrained: bool | str) -> bool:
    if pretrained is True or pretrained in models.get_model_weights(name).__members__:
        return False
    return local_path(str(pretrained)) is not None


def _weights(models: Any, name: str, pretrained: bool | str) -> Any:
    choices = models.get_model_weights(name)
    if pretrained is True:
        return choices.DEFAULT
    if pretrained in choices.__members__:
        return choices[pretrained]
    known = sorted(choices.__members__)
    raise ConfigError(
        f"model.pretrained: neither a file nor weights of {name}: '{pretrained}'; there are "
        f"{', '.join(known)}"
    )


def _from_file(
    build: Callable[..., nn.Module], extra: Mapping[str, Any], path: Path, num_classes: int | None
) -> nn.Module:
    """Build with as many classes as the file has, so that it has to cover the model exactly."""
    weights = read_weights(path)
    model = build(weights=None, num_classes=num_classes or IMAGENET_CLASSES, **extra)
    width = _width(weights, find_head(model))
    if width is not None and width != (num_classes or IMAGENET_CLASSES):
        model = build(weights=None, num_classes=width, **extra)
    fit_weights(model, weights, path)
    return model


def _width(weights: Mapping[str, Tensor], head: str) -> int | None:
    weight = weights.get(f"{head}.weight")
    return None if weight is None or weight.ndim == 0 else weight.shape[0]


def _declare(models: Any, name: str, model: nn.Module) -> None:
    seen = interface_of(model)
    meta = models.get_model_weights(name).DEFAULT
    smallest = int(meta.meta["min_size"][0])
    own = getattr(model, "image_size", None)  # a ViT can be built for another size
    is_fixed = isinstance(own, int) or smallest >= _FIXED_FROM
    size = own if isinstance(own, int) else smallest if is_fixed else 224
    declare(
        model,
        ModelInterface(
            num_classes=seen.num_classes,
            channels=seen.channels,
            image_size=(size, size),
            any_image_size=not is_fixed,
            min_image_size=smallest,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
    )
