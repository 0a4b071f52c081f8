"""From group `peft` of a config to a model in which exactly that trains."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
from omegaconf import DictConfig
from torch import nn

from efftrain.models.lora import add_lora
from efftrain.peft import Selection, add_affine, add_ssf, apply, select, thaw_norms
from efftrain.peft.methods import split_method
from efftrain.peft.sites import WATCHED
from efftrain.task import split_batch


def choose(model: nn.Module, peft: DictConfig, run: Callable[[nn.Module], object]) -> Selection:
    """Give the model the parameters that the method needs, and let what it selects train.

    Args:
        model: Changed in place.
        peft: Checked against `PeftConfig`.
        run: Calls a model once, where a site shows only in a forward.

    Raises:
        ConfigError: As `select` and `apply`.
    """
    methods = split_method(peft.method)
    if peft.thaw:
        thaw_norms(model)
    if peft.add_affine:
        add_affine(model)
    if "ssf" in methods:
        add_ssf(model)
    if "lora" in methods:
        add_lora(model, **peft.lora)
    watched = not frozenset(WATCHED).isdisjoint(peft.sites)
    selection = select(
        model,
        peft.method,
        head=peft.head,
        include=tuple(peft.include),
        exclude=tuple(peft.exclude),
        also=tuple(peft.also),
        extra_norms=tuple(peft.extra_norms),
        norm_kinds=tuple(peft.norm_kinds),
        sites=tuple(peft.sites),
        last_k=peft.last_k,
        blocks=peft.blocks,
        run=run if watched else None,
    )
    apply(model, selection, bn_stats=peft.bn_stats)
    return selection


def forward_on(data: pl.LightningDataModule) -> Callable[[nn.Module], object]:
    """A call of a model with one held-out batch."""

    def run(model: nn.Module) -> object:
        data.setup("fit")
        inputs, _ = split_batch(next(iter(data.val_dataloader())))
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)

    return run
