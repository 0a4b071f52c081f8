"""Preparing samples for what a model takes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface, interface_of


@runtime_checkable
class Adaptable(Protocol):
    """A data module that can prepare its samples for a model; any other is taken as it is."""

    def adapt_to(self, interface: ModelInterface) -> None:
        """Called once, before anything is read.

        Args:
            interface: What the model takes and gives.
        """
        ...


def adapt(data: object, model: nn.Module) -> None:
    """Tell a data module what the model takes, if it wants to know.

    Raises:
        DataError: The two do not fit together.
    """
    if isinstance(data, Adaptable):
        data.adapt_to(interface_of(model))


def check_classes(found: int, interface: ModelInterface, what: str) -> None:
    """Refuse labels that the model has no score for.

    Args:
        found: Number of classes in the data.
        interface: Of the model.
        what: The data, for the message.

    Raises:
        DataError: The data have more classes than the model gives scores.
    """
    given = interface.num_classes
    if given is not None and found > given:
        raise DataError(
            f"data: {what} has {found} classes, the model gives {given} scores; "
            f"set model.num_classes={found}"
        )


def require_image_input(interface: ModelInterface, what: str) -> None:
    """Refuse a model that takes tokens.

    Raises:
        DataError: The model takes no images.
    """
    if interface.channels is None and interface.vocab_size is not None:
        raise DataError(
            f"data: {what} gives images, the model takes {interface}; choose another data="
        )


def require_token_input(interface: ModelInterface, what: str) -> int:
    """Refuse a model that takes images.

    Returns:
        The size of its vocabulary.

    Raises:
        DataError: The model takes no tokens.
    """
    if interface.vocab_size is None:
        takes = (
            f", the model takes {interface}" if str(interface) else ", the model has no vocabulary"
        )
        raise DataError(f"data: {what} gives tokens{takes}; choose another data=")
    return interface.vocab_size
