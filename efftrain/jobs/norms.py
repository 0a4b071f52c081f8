"""The normalization layers of the model that a config describes."""

from __future__ import annotations

import json

import torch
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from efftrain.config.build import build
from efftrain.peft import norm_coverage
from efftrain.peft.norms import NormSite

_WIDTH = 160
"""Columns of a table that is not on a terminal; long paths are not cut."""


def describe_norms(config: DictConfig, form: str) -> str:
    """List the norms of `config.model`.

    Args:
        config: Checked against `TrainConfig`.
        form: "table" for people, "json" for programs.
    """
    torch.manual_seed(config.seed)
    coverage = norm_coverage(build(config.model, "model"), tuple(config.peft.extra_norms))
    if form == "json":
        return json.dumps(coverage.to_dict(), indent=2)
    return f"{_table(coverage.sites)}\n{coverage}"


def _table(sites: tuple[NormSite, ...]) -> str:
    table = Table("path", "kind", "channels", "scale", "bias", "shared with", box=SIMPLE_HEAD)
    for site in sites:
        scale, bias = (_leaf(name, site) for name in (site.scale, site.bias))
        shared = ", ".join(site.shared_with)
        table.add_row(site.path, site.kind, f"{site.channels:,}", scale, bias, shared)
    console = Console(width=max(_WIDTH, Console().width))
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _leaf(name: str | None, site: NormSite) -> str:
    if name is None:
        return "in a buffer" if site.frozen else ""
    return name.removeprefix(f"{site.path}.")
