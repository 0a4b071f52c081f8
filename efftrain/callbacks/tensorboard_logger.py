"""TensorBoard's event files with what a reader needs beside the curves: units and a layout."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from torch import Tensor
from torch.utils.tensorboard.summary import scalar

from efftrain.callbacks.tensorboard_layout import layout_of
from efftrain.tags import find_tag


class DescribedTensorBoardLogger(TensorBoardLogger):
    """Lightning's logger, whose curves say their unit and meaning, and stand together by theme.

    TensorBoard takes the description of a tag from its first value alone, and `SummaryWriter` writes
    none; so the first value of each tag is written here. The tab "Custom scalars" shows the layout
    of `tensorboard_layout`; a chart is added when its first figure comes.

    Arguments are Lightning's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is written yet."""
        super().__init__(*args, **kwargs)
        self._known: set[str] = set()
        self._charts = 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars, each tag's first with its description."""
        fresh = {
            tag: value
            for tag, value in metrics.items()
            if tag not in self._known and isinstance(value, (int, float, Tensor))
        }
        for tag, value in fresh.items():
            self._write_first(tag, float(value), step)
        self._known.update(fresh)
        rest = {tag: value for tag, value in metrics.items() if tag not in fresh}
        if rest:
            super().log_metrics(rest, step)
        if fresh:
            self._write_layout()

    def _write_first(self, tag: str, value: float, step: int | None) -> None:
        name = f"{self._prefix}{self.LOGGER_JOIN_CHAR}{tag}" if self._prefix else tag
        summary = scalar(name, value)
        # the plugin's own metadata: TensorBoard's fast reader leaves out a bare description
        described = create_summary_metadata(display_name="", description=describe(tag))
        summary.value[0].metadata.CopyFrom(described)
        self.experiment._get_file_writer().add_summary(summary, step, time.time())

    def _write_layout(self) -> None:
        layout = layout_of(self._known)
        charts = sum(map(len, layout.values()))
        if charts > self._charts:
            self._charts = charts
            self.experiment.add_custom_scalars(layout)


def describe(tag: str) -> str:
    """Unit, how it is obtained and meaning, in Markdown; "" for a tag that is not in the table."""
    known = find_tag(tag)
    if known is None:
        return ""
    unit = f"**{known.unit}**, " if known.unit else ""
    return f"{unit}{known.how}: {known.meaning}"
