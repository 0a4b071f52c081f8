"""Models of transformers: image and text classifiers and causal language models."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from efftrain.errors import CheckpointError, ConfigError
from efftrain.models.hub import KEY, first_line, loading, local_path, quiet, shows_bars
from efftrain.models.hugging_face_config import config_from_hub, config_of_type
from efftrain.models.interface import declare, interface_of_config
from efftrain.models.new_head import say_new_head
from efftrain.models.weights import read_weights
from efftrain.peft import find_heads

_log = logging.getLogger(__name__)

Attention = Literal["eager", "sdpa"]
"""Others are fetched as code from the hub."""

Dtype = Literal["float32", "bfloat16", "float16", "auto"]

_LOGGERS = ("transformers", "huggingface_hub")

_MOST_LACKING = 0.5
"""Share of the tensors outside the head that weights may lack: a pooler or a last norm is often
left out, but half a model is another model."""


def hf_image(
    name: str | None = None,
    pretrained: bool | str = False,
    num_classes: int | None = 10,
    type: str | None = "vit",
    config: dict[str, Any] | None = None,
    dtype: Dtype = "float32",
    attention: Attention | None = None,
) -> nn.Module:
    """Build an image classifier of transformers.

    Args:
        name: Hub id or folder. With `pretrained=true` its weights are loaded; with false only its
            configuration is taken.
        pretrained: False for random weights; True for those of `name`; a hub id; a folder with
            config.json and weights, as on the hub; or a .safetensors file of what `name`, or else
            `type` and `config` describe.
        num_classes: Width of the head; a new one where the weights have another. None: theirs.
        type: As transformers calls the architecture; used where neither `name` nor `pretrained`
            says it.
        config: What differs from the type's own configuration.
        dtype: Of all parameters; `auto` takes that of the file.
        attention: Implementation; None leaves it to transformers.

    Returns:
        Takes `pixel_values` [N, C, H, W]; returns an output with `logits` [N, num_classes].

    Raises:
        ConfigError: No such type or configuration key, or the weights are of another kind.
        CheckpointError: The weights are missing, damaged or of another model.
        MachineError: The hub cannot be reached.
    """
    source = _Source("AutoModelForImageClassification", name, pretrained, type, config)
    return _build(source, num_classes, dtype, attention)


def hf_text(
    name: str | None = None,
    pretrained: bool | str = False,
    num_classes: int | None = 2,
    type: str | None = "bert",
    config: dict[str, Any] | None = None,
    dtype: Dtype = "float32",
    attention: Attention | None = None,
) -> nn.Module:
    """Build a text classifier of transformers.

    Arguments and errors are those of `hf_image`.

    Returns:
        Takes `input_ids` and `attention_mask` [N, T]; returns an output with `logits`
        [N, num_classes].
    """
    source = _Source("AutoModelForSequenceClassification", name, pretrained, type, config)
    return _build(source, num_classes, dtype, attention)


def hf_causal_lm(
    name: str | None = None,
    pretrained: bool | str = False,
    type: str | None = "llama",
    config: dict[str, Any] | None = None,
    dtype: Dtype = "float32",
    attention: Attention | None = None,
) -> nn.Module:
    """Build a causal language model of transformers.

    Arguments and errors are those of `hf_image`.

    Returns:
        Takes `input_ids` and `attention_mask` [N, T]; returns an output with `logits`
        [N, T, vocabulary].
    """
    source = _Source("AutoModelForCausalLM", name, pretrained, type, config)
    model = _build(source, None, dtype, attention)
    settings: Any = model.config
    settings.use_cache = False  # of keys and values: only generation reads it
    return model


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a model comes from.

    Attributes:
        auto: Name of transformers' class that picks the architecture.
        name: Hub id or folder.
        pretrained: Whether, or from where, weights are loaded.
        type: Architecture.
        config: What differs from its own configuration.
    """

    auto: str
    name: str | None
    pretrained: bool | str
    type: str | None
    config: Mapping[str, Any] | None


def _build(
    source: _Source, num_classes: int | None, dtype: Dtype, attention: Attention | None
) -> nn.Module:
    given: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if attention is not None:
        given["attn_implementation"] = attention
    weights = source.pretrained
    if weights is True:
        if source.name is None:
            raise ConfigError(
                f"model.name: needs a hub id or a folder, as {KEY}=true; or name it there"
            )
        weights = source.name
    if isinstance(weights, str):
        key = "model.name" if source.pretrained is True else KEY
        model = _with_weights(source, weights, local_path(weights, key), num_classes, given)
    else:
        model = _with_random_weights(source, num_classes, given)
    # `from_pretrained` leaves it in eval mode, and Lightning trains a model in the mode it is in
    return model.train()


def _configure(source: _Source, num_classes: int | None) -> Any:
    """The architecture, where no weights say it."""
    if source.name is not None:
        folder = local_path(source.name, "model.name")
        config = config_from_hub(source.auto, str(folder or source.name))
    else:
        config = config_of_type(source.auto, source.type, source.config or {})
    if num_classes is not None:
        config.num_labels = num_classes
    return config


def _with_random_weights(
    source: _Source, num_classes: int | None, given: Mapping[str, Any]
) -> nn.Module:
    import transformers

    config = _configure(source, num_classes)
    options = {**given, "dtype": torch.float32} if given["dtype"] == "auto" else given
    try:
        with _quiet():
            return getattr(transformers, source.auto).from_config(
                config, trust_remote_code=False, **options
            )
    except Exception as error:  # a combination of sizes that the architecture cannot have
        raise ConfigError(
            f"model.config: {config.model_type} cannot be built so: {first_line(error)}"
        ) from error


def _with_weights(
    source: _Source,
    weights: str,
    path: Path | None,
    num_classes: int | None,
    given: Mapping[str, Any],
) -> nn.Module:
    """From a hub id, a folder, or a file of an architecture that the config says."""
    import transformers

    place: str | None = str(path or weights)
    options = dict(given)
    if path is not None and path.is_file():
        config = _configure(source, num_classes)
        options["state_dict"] = read_weights(path)
        place = None
    else:
        if path is not None and not (path / "config.json").is_file():
            raise CheckpointError(
                f"{KEY}: {path} holds no config.json, so no model of transformers"
            )
        config = config_from_hub(source.auto, str(place))
        if num_classes is not None:
            config.num_labels = num_classes
    with loading(weights), _quiet():
        model, report = getattr(transformers, source.auto).from_pretrained(
            place,
            config=config,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # of the head; others are refused below
            output_loading_info=True,
            **options,
        )
    lacking = set(report["missing_keys"])
    misfits = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    _check_report(model, weights, lacking, misfits, num_classes)
    if place is not None and getattr(config, "num_channels", None) is not None:
        mean, std = _pixel_statistics(place)
        interface = interface_of_config(model.config)
        declare(model, dataclasses.replace(interface, mean=mean, std=std))
    return model


def _check_report(
    model: nn.Module, source: str, lacking: set[str], misfits: set[str], num_classes: int | None
) -> None:
    """Say which head is new, and refuse weights that leave other parts of the model random."""
    heads = find_heads(model)

    def in_head(name: str) -> bool:
        return any(name == head or name.startswith(f"{head}.") for head in heads)

    wrong = sorted(name for name in misfits if not in_head(name))
    if wrong:
        raise CheckpointError(
            f"{KEY}: {source} has '{wrong[0]}' in another shape than its configuration says"
            f" ({len(wrong)} tensors)"
        )
    outside = sorted(name for name in lacking if not in_head(name))
    body = sum(not in_head(name) for name, _ in model.named_parameters())
    if outside and len(outside) > _MOST_LACKING * body:
        raise CheckpointError(
            f"{KEY}: {source} lacks {len(outside)} of the {body} tensors of this "
            f"{type(model).__name__}, such as '{outside[0]}'; it is of another model"
        )
    if outside:
        _log.warning(
            f"{source} lacks {', '.join(outside[:4])}{' …' if len(outside) > 4 else ''}"
            f" ({len(outside)} tensors); they are random"
        )
    if any(in_head(name) for name in lacking | misfits):
        say_new_head(heads[0], num_classes)


def _pixel_statistics(place: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation that the model's own preprocessing uses, where it says so."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with _quiet():
            processing, _ = ImageProcessingMixin.get_image_processor_dict(place)
    except (OSError, ValueError):
        return None, None
    mean, std = processing.get("image_mean"), processing.get("image_std")
    if processing.get("do_normalize", True) and mean and std:
        return tuple(mean), tuple(std)
    return None, None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of the head that is new, which is said in a line of ours."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from huggingface_hub.utils import enable_progress_bars as enable_downloads
    from transformers.utils import logging as chatter

    had_bar, had_downloads = chatter.is_progress_bar_enabled(), not are_progress_bars_disabled()
    chatter.disable_progress_bar()
    if not shows_bars():
        disable_progress_bars()
    try:
        with quiet(*_LOGGERS):
            yield
    finally:
        if had_bar:
            chatter.enable_progress_bar()
        if had_downloads:
            enable_downloads()
