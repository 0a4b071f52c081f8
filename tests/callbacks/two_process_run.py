"""python two_process_run.py <result.json>: a run in two processes, of which the second is slow to load."""

import json
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from efftrain.callbacks import StepTimer, Throughput
from tests.callbacks.conftest import ListLogger

SAMPLES = (4, 2)
TOKENS_OF_A_SAMPLE = (5, 7)
WAIT_S = (0.02, 0.10)
FLOPS_PER_SAMPLE = 1e6


class Batches(Dataset):
    def __init__(self, rank):
        self.rank = rank

    def __len__(self):
        return 8

    def __getitem__(self, place):
        time.sleep(WAIT_S[self.rank])
        size = (SAMPLES[self.rank], TOKENS_OF_A_SAMPLE[self.rank])
        return {"input_ids": torch.ones(size, dtype=torch.long)}


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def train_dataloader(self):
        return DataLoader(Batches(self.global_rank), batch_size=None)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["input_ids"].float().mean().reshape(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main():
    torch.set_num_threads(1)
    logger, timer = ListLogger(), StepTimer(warmup_steps=2)
    meter = Throughput(warmup_steps=2, flops_per_sample=FLOPS_PER_SAMPLE)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=logger, callbacks=[timer, meter],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        max_epochs=1, log_every_n_steps=4, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(Module())
    result = {
        "rows": logger.rows,
        "samples": meter.samples,
        "tokens": meter.tokens,
        "own_data_ms": timer.times.data_ms,
    }
    if trainer.is_global_zero:
        Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
