"""Two processes on the CPU (gloo): policies, gradients and recalibration hold across ranks."""

import os
import socket
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import os, torch
from torch import nn
from efftrain import peft

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
    nn.Flatten(), nn.Linear(64, 2),
)
data = torch.randn(6, 3, 8, 8) * 2 + 1
mine = data[:2] if rank == 0 else data[2:]  # of different size

done = peft.recalibrate(model, [mine])
whole = nn.Sequential(*model).eval()
seen = whole[0](data)
assert torch.allclose(model[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
assert torch.allclose(model[1].running_var, seen.var((0, 2, 3), correction=0), rtol=1e-4)

peft.apply(model, peft.select(model, "norm"), bn_stats="running")
frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
buffers = [b.clone() for b in model.buffers()]
parallel = nn.parallel.DistributedDataParallel(model)  # no find_unused_parameters
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for _ in range(2):
    parallel.train()
    optimizer.zero_grad()
    parallel(mine).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    optimizer.step()
assert peft.get_bn_stats(model) == "running"
assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers()))
assert all(
    torch.equal(a, b) for a, b in zip(frozen, (p for p in model.parameters() if not p.requires_grad))
)
both = [torch.empty_like(model[1].weight) for _ in range(2)]
torch.distributed.all_gather(both, model[1].weight.detach())
assert torch.equal(*both)
torch.distributed.destroy_process_group()
print("rank", rank, "done", done.exact)
"""


@pytest.mark.slow
def test_two_processes_train_norms_only_and_agree() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    assert torch.distributed.is_gloo_available()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert all(f"rank {rank} done True" in output for rank, output in enumerate(outputs))
