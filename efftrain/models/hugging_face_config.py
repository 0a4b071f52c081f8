"""A configuration of transformers: of a type with what differs, or from a hub or folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from efftrain.errors import ConfigError
from efftrain.models.chatter import quiet_transformers
from efftrain.models.hub import KEY, first_line, loading
from efftrain.peft.patterns import did_you_mean

_MAPPINGS = {
    "AutoModelForImageClassification": (
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "image classifier",
    ),
    "AutoModelForSequenceClassification": (
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "text classifier",
    ),
    "AutoModelForCausalLM": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "causal language model"),
}

_SET_ELSEWHERE = {
    "num_labels": "model.num_classes",
    "id2label": "model.num_classes",
    "label2id": "model.num_classes",
    "dtype": "model.dtype",
}


def config_of_type(auto: str, kind: str | None, changes: Mapping[str, Any]) -> Any:
    """The configuration of a type, with some of its keys changed.

    Args:
        auto: Name of the class that picks the architecture, such as `AutoModelForCausalLM`.
        kind: `model.type`, as transformers calls the architecture.
        changes: `model.config`.

    Returns:
        A `PretrainedConfig`.

    Raises:
        ConfigError: There is no such type of this kind, it has no such key, or a value is wrong.
    """
    from transformers import CONFIG_MAPPING

    names, what = _types(auto)
    if kind not in names:
        hint = did_you_mean(str(kind), names) or f"; there are {', '.join(sorted(names)[:8])}, …"
        raise ConfigError(f"model.type: transformers has no {what} '{kind}'{hint}")
    make = CONFIG_MAPPING[kind]
    _check_keys(make, kind, changes)
    try:
        return make(**changes)
    except Exception as error:  # huggingface_hub's validation has a base class of its own
        raise ConfigError(f"model.config: {first_line(error)}") from error


def config_from_hub(auto: str, source: str) -> Any:
    """The configuration that lies beside weights.

    Args:
        auto: Name of the class that has to know its type.
        source: Hub id or folder.

    Raises:
        ConfigError: It is of another kind of model.
        CheckpointError: There is none, or it is damaged.
        MachineError: The hub cannot be reached.
    """
    from transformers import AutoConfig

    with loading(source), quiet_transformers():
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    names, what = _types(auto)
    if config.model_type not in names:
        raise ConfigError(
            f"{KEY}: {source} is a {config.model_type}, of which transformers has no {what}"
        )
    return config


def _types(auto: str) -> tuple[set[str], str]:
    from transformers.models.auto import modeling_auto

    mapping, what = _MAPPINGS[auto]
    return set(getattr(modeling_auto, mapping)), what


def _check_keys(make: Any, kind: str, changes: Mapping[str, Any]) -> None:
    """An auto class takes an unknown key without a word, and nothing comes of it."""
    known = {name for name in inspect.signature(make).parameters if not name.startswith("_")}
    known |= set(make.attribute_map)
    known -= {"kwargs", *_SET_ELSEWHERE}
    unknown = [name for name in changes if name not in known]
    problems = []
    for name in unknown:
        hint = did_you_mean(name, known)
        if name in _SET_ELSEWHERE:
            hint = f"; write {_SET_ELSEWHERE[name]}"
        problems.append(f"model.config.{name}: unknown key of {kind}{hint}")
    if problems:
        if len(unknown) > 1:  # the keys of another type
            problems[-1] += "; model.config=null takes none of the keys that the YAML has"
        raise ConfigError(*problems)
