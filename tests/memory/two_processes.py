"""One step of a reduced model in two processes, by DDP or FSDP2, against plain torch.

Run by test_distributed.py: python -m tests.memory.two_processes <ddp|fsdp> <rank> <file to meet at>
"""

import copy
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from efftrain.memory import reduce_memory
from tests.memory.steps import NORMS, randomize_norms, saved_bytes, train_norms_alone


def net() -> nn.Module:
    return randomize_norms(
        train_norms_alone(
            nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
                nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.SiLU()),
                nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 4),
            ),
            "6.",
        )
    )  # fmt: skip


def shard(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[3], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def step(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    (model(batch) ** 2).mean().backward()
    grads = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    return {
        n: g.full_tensor() if isinstance(g, DTensor) else g
        for n, g in grads.items()
        if g is not None
    }


def main(way: str, rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = net()
    reduced = copy.deepcopy(plain)
    reduce_memory(reduced)
    wrap = DistributedDataParallel if way == "ddp" else shard
    plain, reduced = wrap(plain), wrap(reduced)
    batch = torch.randn(2, 4, 3, 12, 12)[rank]
    expected, found = step(plain, batch), step(reduced, batch)
    assert expected.keys() == found.keys()
    for name, grad in expected.items():
        assert torch.allclose(grad, found[name], rtol=1e-5, atol=1e-7), name
    if way == "ddp":
        assert saved_bytes(reduced, batch) < 0.7 * saved_bytes(plain, batch)
    assert any(isinstance(module, NORMS) for module in reduced.modules())
    dist.barrier()
    dist.destroy_process_group()
    print(f"{len(found)} gradients are equal")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
