"""Where the package keeps its configs and assets, and what a run folder holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder of the shipped configs.

    In a wheel they lie inside the package, in a checkout beside it.
    """
    inside = PACKAGE / "conf"
    return inside if (inside / "train.yaml").is_file() else PACKAGE.parent / "conf"


def cache_folder() -> Path:
    """Where measurements and built kernels are kept: $EFFTRAIN_CACHE, or the system's place for them."""
    own = os.environ.get("EFFTRAIN_CACHE")
    if own:
        return Path(own)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))  # one that is not absolute does not count
    if not shared.is_absolute():
        shared = Path(os.path.expanduser("~"), ".cache")  # noqa: PTH111 (Path.home() may raise)
    return shared / "efftrain"


@dataclass(frozen=True)
class RunFolder:
    """Every file name of one run, in one place.

    Attributes:
        root: Hydra's run directory.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The composed config, as Hydra saves it."""
        return self.root / ".hydra" / "config.yaml"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tb"

    @property
    def checkpoints(self) -> Path:
        """Lightning's checkpoints."""
        return self.root / "checkpoints"

    @property
    def delta(self) -> Path:
        """What the fine-tuning changed, and nothing else."""
        return self.root / "delta.safetensors"

    @property
    def summary_json(self) -> Path:
        """The result, for programs."""
        return self.root / "summary.json"

    @property
    def summary_md(self) -> Path:
        """The result, for people."""
        return self.root / "summary.md"

    @property
    def layers_csv(self) -> Path:
        """What each layer costs, one on a line."""
        return self.root / "layers.csv"

    @property
    def report_html(self) -> Path:
        """What a job costs, as a page."""
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        """What a job costs, drawn."""
        return self.root / "figures.png"

    @property
    def environment(self) -> Path:
        """Versions and hardware that the run saw."""
        return self.root / "env.json"
