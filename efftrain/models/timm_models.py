"""Image classifiers of timm, with weights from a hub, a folder or a file, or none."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from efftrain.errors import CheckpointError, ConfigError
from efftrain.models.chatter import HUB, quiet
from efftrain.models.hub import KEY, loading, local_path
from efftrain.models.interface import ModelInterface, declare, interface_of
from efftrain.models.new_head import say_new_head
from efftrain.models.weights import read_weights
from efftrain.optional import require
from efftrain.peft import find_head
from efftrain.peft.patterns import did_you_mean

_HUB = "hf-hub:"
_FOLDER = "local-dir:"


def timm_model(
    name: str | None = None,
    pretrained: bool | str = False,
    num_classes: int | None = 10,
    kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a classifier of timm.

    Args:
        name: As `timm.list_models()` has it, such as `resnet50`, or with the tag of a set of
            weights, such as `resnet50.a1_in1k`. Not needed for a folder or a hub id, which say it.
        pretrained: False for random weights; True for timm's weights of that name; a hub id such as
            `timm/resnet50.a1_in1k`; a folder with config.json and weights, as on the hub; or a
            .safetensors or .pth file with a state dict.
        num_classes: Width of the head; a new one where the weights have another. None: theirs.
        kwargs: For the model's own constructor, such as `in_chans`, `img_size`, `drop_path_rate`.

    Returns:
        Takes [N, C, H, W]; returns [N, num_classes].

    Raises:
        ConfigError: No such model or argument, or timm has no weights of it.
        CheckpointError: The weights are missing, damaged or of another model.
        MachineError: timm is not installed, or the hub cannot be reached.
    """
    timm = require("timm", extra="timm")
    extra = _checked(timm, kwargs or {})
    if isinstance(pretrained, str):
        model = _from_source(timm, name, pretrained, extra)
    else:
        _check_name(timm, name)
        if not pretrained:
            width = {} if num_classes is None else {"num_classes": num_classes}
            model = timm.create_model(name, pretrained=False, **width, **extra)
            return _declared(model, extra)
        _check_weights(timm, str(name))
        model = _load(timm, str(name), str(name), extra)
    if num_classes is not None and model.num_classes != num_classes:
        model.reset_classifier(num_classes)
        say_new_head(find_head(model), num_classes)
    return _declared(model, extra)


def _checked(timm: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`create_model` reads files and hubs by other arguments; those are `model.pretrained`."""
    ours = set(inspect.signature(timm.create_model).parameters) - {"kwargs"}
    taken = sorted((ours | {"num_classes"}) & kwargs.keys())
    if taken:
        raise ConfigError(
            f"model.kwargs.{taken[0]}: write model.name, model.pretrained or model.num_classes instead"
        )
    return dict(kwargs)


def _check_name(timm: Any, name: str | None) -> None:
    if name is None:
        raise ConfigError(
            "model.name: needs a value such as model.name=resnet50; without one, model.pretrained "
            "has to be a hub id or a folder, which say what they hold"
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        hint = did_you_mean(architecture, known)
        raise ConfigError(f"model.name: timm has no model '{architecture}'{hint}")
    tags = _tags(timm, architecture)
    if tag and tag not in tags:
        hint = f"; there are {', '.join(tags)}" if tags else "; there are none"
        raise ConfigError(f"model.name: timm has no weights '{tag}' of {architecture}{hint}")


def _check_weights(timm: Any, name: str) -> None:
    if not _tags(timm, name.partition(".")[0]):
        raise ConfigError(
            f"{KEY}: timm has no weights of {name}; write {KEY}=false, or a folder or file"
        )


def _tags(timm: Any, architecture: str) -> list[str]:
    names = timm.list_pretrained(f"{architecture}.*")
    return [found.partition(".")[2] for found in names]


def _from_source(timm: Any, name: str | None, source: str, extra: Mapping[str, Any]) -> Any:
    source = source.removeprefix(_HUB).removeprefix(_FOLDER)
    path = local_path(source)
    if path is not None and path.is_file():
        _check_name(timm, name)
        return _from_file(timm, str(name), path, extra)
    if path is not None:
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{KEY}: {path} holds no config.json; name the file with the weights"
            )
        model = _load(timm, f"{_FOLDER}{path.resolve()}", source, extra)
    else:
        model = _load(timm, f"{_HUB}{source}", source, extra)
    held = str(model.pretrained_cfg.get("architecture", ""))
    if name is not None and name.partition(".")[0] != held:
        raise ConfigError(
            f"model.name: {source} holds a {held}, not a {name}; leave model.name out"
        )
    return model


def _from_file(timm: Any, name: str, path: Path, extra: Mapping[str, Any]) -> Any:
    """Build with as many classes as the file has, so that it has to cover the model exactly."""
    weights = read_weights(path)
    config = timm.get_pretrained_cfg(name)
    width = _width(weights, config.classifier)
    overlay: dict[str, Any] = {"state_dict": weights}
    given: dict[str, Any] = {**extra, "pretrained_cfg_overlay": overlay}
    if width is not None:
        overlay["num_classes"] = given["num_classes"] = width
    return _load(timm, name, str(path), given)


def _width(weights: Mapping[str, Tensor], classifier: Any) -> int | None:
    """Classes that a state dict has, by the layer that timm declares as the classifier."""
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    found = [weights[f"{name}.weight"].shape[0] for name in names if f"{name}.weight" in weights]
    return found[0] if found else None


def _load(timm: Any, name: str, source: str, given: Mapping[str, Any]) -> Any:
    with loading(source), quiet("timm", HUB):
        return timm.create_model(name, pretrained=True, **given)


def _declared(model: Any, extra: Mapping[str, Any]) -> nn.Module:
    config: dict[str, Any] = dict(model.pretrained_cfg)
    channels, *size = config.get("input_size", (3, 224, 224))
    traits = getattr(model, "_traits", {})  # newer versions say what was in fact built
    asked = extra.get("img_size", traits.get("img_size"))
    if asked is not None:
        size = [asked, asked] if isinstance(asked, int) else list(asked)
    smallest = config.get("min_input_size") or (3, 1, 1)
    channels = extra.get("in_chans", channels)
    same = channels == len(config["mean"])
    declare(
        model,
        ModelInterface(
            num_classes=getattr(model, "num_classes", None) or interface_of(model).num_classes,
            channels=channels,
            image_size=(int(size[0]), int(size[1])),
            any_image_size=not config.get("fixed_input_size", False),
            min_image_size=max(smallest[1:]),
            mean=tuple(config["mean"]) if same else None,
            std=tuple(config["std"]) if same else None,
        ),
    )
    return model
