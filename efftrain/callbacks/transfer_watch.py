"""Noticing when a training batch goes to the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.strategies import Strategy

_NAME = "batch_to_device"


class TransferWatch:
    """Calls a function before and after each batch that a strategy moves to its device.

    Lightning fetches and moves a batch before any hook of a callback, so that without this the move
    could not be told from the wait for data. `Strategy.batch_to_device` is where the hooks
    `transfer_batch_to_device` and `on_after_batch_transfer` of a module or datamodule are called.

    Args:
        before: Called with the batch still on the host.
        after: Called with the batch on the device.
    """

    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Nothing is watched yet."""
        self._before = before
        self._after = after
        self._watching = False

    def start(self, strategy: Strategy) -> None:
        """Watch, until `stop`."""
        move = strategy.batch_to_device
        self._replaced = vars(strategy).get(_NAME)

        def watched_move(*args: Any, **kwargs: Any) -> Any:
            if not self._watching:
                return move(*args, **kwargs)
            self._before()
            batch = move(*args, **kwargs)
            self._after()
            return batch

        self._strategy, self._move, self._watching = strategy, watched_move, True
        setattr(strategy, _NAME, watched_move)

    def stop(self) -> None:
        """Leave the strategy as it was, unless somebody else has wrapped it since."""
        if self._watching and vars(self._strategy).get(_NAME) is self._move:
            if self._replaced is None:
                delattr(self._strategy, _NAME)
            else:
                setattr(self._strategy, _NAME, self._replaced)
        self._watching = False
