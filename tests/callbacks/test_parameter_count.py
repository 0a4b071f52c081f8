"""Parameters, sizes and the delta, at the start and when others train than before."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from efftrain.callbacks import ParameterCount
from efftrain.peft import save_delta
from tests.callbacks.conftest import SleepyModule
from tests.callbacks.small_job import PARAMETERS, Plain, fit, make_task

TOTAL = sum(PARAMETERS.values())
MIB = 1024**2


def test_parameters_are_counted_at_the_start_and_the_end(train):
    module = SleepyModule()
    module.layer.bias.requires_grad_(False)
    module.register_buffer("extra", torch.zeros(5))
    logger = train(ParameterCount(), module)
    assert logger.steps("params/total") == [0, 3]
    assert logger.values("params/total") == [8] * 2
    assert logger.values("params/trainable") == [6] * 2
    assert logger.values("params/trainable_pct") == [75.0] * 2
    assert logger.values("params/buffers") == [5] * 2
    assert logger.values("size/model_mib") == [13 * 4 / MIB] * 2


def test_sizes_at_other_widths_are_of_the_parameters_alone():
    logger, _ = fit(Plain(), [ParameterCount()])
    for width, size in (("fp32", 4), ("fp16", 2), ("int8", 1)):
        assert logger.values(f"size/{width}_mib")[0] == size * TOTAL / MIB
    assert logger.values("size/int4_mib")[0] == (TOTAL + 1) // 2 / MIB


def test_what_trains_is_counted_by_role_without_a_selection():
    module = Plain()
    module.model.conv.requires_grad_(False)
    logger, _ = fit(module, [ParameterCount()])
    assert logger.values("params/trainable/norm")[0] == PARAMETERS["norm"]
    assert logger.values("params/trainable/head")[0] == PARAMETERS["head"]
    assert logger.values("params/trainable/other") == []
    assert logger.values("size/delta_kib") == [], "nobody said what a delta would hold"


def test_the_delta_is_the_file_that_is_written(tmp_path):
    count, task = ParameterCount(), make_task("norm")
    logger, _ = fit(task, [count])
    written = save_delta(task.model, tmp_path / "x.safetensors", selection=task.selection)
    assert count.delta_bytes == written.bytes
    assert logger.values("size/delta_kib")[0] == written.bytes / 1024


class Thaw(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.model.conv.requires_grad_(trainer.current_epoch > 0)
        pl_module.model.fc.requires_grad_(trainer.current_epoch == 0)


def test_it_is_counted_again_when_others_train_than_before():
    module = Plain()
    module.model.conv.requires_grad_(False)
    logger, _ = fit(module, [Thaw(), ParameterCount()], max_epochs=2, log_every_n_steps=3)
    assert logger.steps("params/trainable") == [0, 9, 12], "6 steps an epoch, windows of 3"
    before, after = (
        PARAMETERS["norm"] + PARAMETERS["head"], PARAMETERS["norm"] + PARAMETERS["other"]
    )  # fmt: skip
    assert logger.values("params/trainable") == [before, after, after]
    assert logger.values("params/trainable/head") == [PARAMETERS["head"], 0, 0]


def test_a_network_is_named_as_it_names_itself_only_if_it_holds_everything():
    module = Plain()
    module.extra = torch.nn.Linear(2, 2)
    logger, _ = fit(module, [ParameterCount()])
    assert logger.values("params/total")[0] == TOTAL + 6
