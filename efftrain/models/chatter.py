"""What libraries print while they load, and when it is of use."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HUB = "huggingface_hub"


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Let libraries log errors only: what matters is said in a line of ours.

    Args:
        names: Of their loggers.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the bar over tensors and the report of the head that is new, which we say ourselves.

    The bar of a download stays where there is a terminal.
    """
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as chatter

    had_bar, had_downloads = chatter.is_progress_bar_enabled(), not are_progress_bars_disabled()
    chatter.disable_progress_bar()
    if not shows_bars():
        disable_progress_bars()
    try:
        with quiet("transformers", HUB):
            yield
    finally:
        if had_bar:
            chatter.enable_progress_bar()
        if had_downloads:
            enable_progress_bars()


def shows_bars() -> bool:
    """Whether a bar of a download is of use: only on a terminal."""
    return sys.stderr.isatty()
