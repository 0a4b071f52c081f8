"""Parameters and bytes, of models as people load them: tied, mixed, quantized, sharded."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efftrain.profiling.params import count_parameters, size_of


def test_a_tied_tensor_counts_once() -> None:
    model = nn.ModuleList([nn.Linear(3, 5, bias=False), nn.Linear(3, 5)])
    model[1].weight = model[0].weight
    counts = count_parameters(model)
    assert counts.total == 15 + 5
    assert counts.trainable == 20
    assert counts.model_bytes == 4 * 20


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_two_parameters_in_the_same_memory_are_tied(device: str) -> None:
    model = nn.ModuleList([nn.Embedding(7, 3, device=device), nn.Linear(3, 7, device=device)])
    model[1].weight = nn.Parameter(model[0].weight.data)
    counts = count_parameters(model)
    assert (counts.total, counts.trainable) == (21 + 7, 28)
    assert counts.model_bytes == 4 * 28


def test_parts_of_one_memory_count_each() -> None:
    """As the weights of recurrent layers on a GPU."""
    memory, model = torch.zeros(10), nn.Module()
    model.first, model.second = nn.Parameter(memory[:4]), nn.Parameter(memory[4:])
    counts = count_parameters(model)
    assert (counts.total, counts.model_bytes) == (10, 40)


def test_frozen_and_buffers_and_bytes() -> None:
    model = nn.BatchNorm2d(4).half()
    model.bias.requires_grad_(False)
    counts = count_parameters(model)
    assert (counts.total, counts.trainable, counts.trainable_pct) == (8, 4, 50.0)
    assert counts.buffers == 4 + 4 + 1
    assert counts.model_bytes == 2 * 16 + 8  # half precision, and an int64 counter


def test_each_tensor_has_the_width_of_its_own_type() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False).bfloat16(), nn.LayerNorm(4).double())
    assert count_parameters(model).model_bytes == 2 * 16 + 8 * 8


def test_a_model_without_parameters_has_no_share() -> None:
    assert count_parameters(nn.ReLU()).trainable_pct == 0.0


def test_the_meta_device_will_do() -> None:
    with torch.device("meta"):
        model = nn.Linear(1000, 1000)
    counts = count_parameters(model)
    assert (counts.total, counts.model_bytes) == (1_001_000, 4_004_000)


def test_other_widths_are_of_the_same_elements() -> None:
    sizes = size_of(count_parameters(nn.Linear(3, 1, bias=False)))
    assert sizes.to_dict() == {
        "model_bytes": 12, "fp32_bytes": 12, "fp16_bytes": 6, "int8_bytes": 3, "int4_bytes": 2,
    }  # fmt: skip


def test_adapters_beside_a_frozen_model() -> None:
    from peft import LoraConfig, get_peft_model

    base = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    counts = count_parameters(get_peft_model(base, LoraConfig(r=2, target_modules=["0"])))
    assert counts.trainable == 2 * (16 + 32)
    assert counts.total == 16 * 32 + 32 + 32 * 8 + 8 + counts.trainable


class Rowwise(Tensor):
    """8 bits for a bfloat16 weight [n, k], with a scale for each row, as torchao's tensors are built."""

    @staticmethod
    def __new__(cls, whole: Tensor, scale: Tensor) -> Rowwise:
        return Tensor._make_wrapper_subclass(cls, whole.shape, dtype=torch.bfloat16)

    def __init__(self, whole: Tensor, scale: Tensor) -> None:
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["whole", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Rowwise(args[0].whole, args[0].scale)
        raise NotImplementedError(func)  # the test needs no other operator


def test_a_quantized_tensor_takes_the_bytes_of_its_parts() -> None:
    model = nn.Linear(64, 32, bias=False)
    parts = torch.zeros(32, 64, dtype=torch.int8), torch.zeros(32, 1)
    model.weight = nn.Parameter(Rowwise(*parts), requires_grad=False)
    counts = count_parameters(model)
    assert (counts.total, counts.trainable) == (2048, 0)
    assert model.weight.dtype == torch.bfloat16  # what it stands for: 4096 bytes
    assert counts.model_bytes == 2048 + 4 * 32
    inner = Rowwise(torch.zeros(32, 1, dtype=torch.int8), torch.zeros(1))
    model.weight = nn.Parameter(Rowwise(parts[0], inner), requires_grad=False)
    assert count_parameters(model).model_bytes == 2048 + 32 + 4


def test_weights_of_4_bits_in_bytes_count_as_what_they_stand_for() -> None:
    """bitsandbytes: two weights to a byte, a scale for 64 of them; the scales may be quantized again."""
    model = nn.Linear(64, 32, bias=False)
    model.weight = nn.Parameter(torch.zeros(1024, 1, dtype=torch.uint8), requires_grad=False)
    scales_of_scales = SimpleNamespace(absmax=torch.zeros(1), code=torch.zeros(256))
    model.weight.quant_state = SimpleNamespace(
        shape=torch.Size([32, 64]),
        absmax=torch.zeros(32, dtype=torch.uint8),
        code=torch.zeros(16),
        state2=scales_of_scales,
    )
    counts = count_parameters(model)
    assert counts.total == 2048
    assert counts.model_bytes == 1024 + 32 + 4 * 16 + 4 * (1 + 256)


def test_weights_of_8_bits_have_a_scale_for_each_row() -> None:
    model = nn.Linear(64, 32, bias=False)
    model.weight = nn.Parameter(torch.zeros(32, 64, dtype=torch.int8), requires_grad=False)
    model.weight.SCB = torch.zeros(32)
    counts = count_parameters(model)
    assert (counts.total, counts.model_bytes) == (2048, 2048 + 4 * 32)


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization: deprecated, and still used
def test_packed_layers_of_torch_hold_weights_that_are_no_parameters() -> None:
    floats = nn.Sequential(nn.Linear(8, 4), nn.LSTM(8, 4))
    whole = torch.ao.quantization.quantize_dynamic(floats, {nn.Linear, nn.LSTM}, dtype=torch.qint8)
    assert list(whole.parameters()) == []
    counts = count_parameters(whole)
    weights, biases = 8 * 4 + 16 * (8 + 4), 4 + 16 + 16
    assert counts.total == sum(p.numel() for p in floats.parameters()) == weights + biases
    assert counts.model_bytes == weights + 4 * biases

    import torch.ao.nn.quantized as nnq

    counts = count_parameters(nnq.Conv2d(3, 4, 3))
    assert counts.total == 4 * 3 * 9 + 4
    counts = count_parameters(nnq.Embedding(10, 12))  # quantized by row: two floats each
    assert counts.total == 120


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_sparse_tensor_takes_what_it_stores() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.eye(8).to_sparse(), requires_grad=False)
    assert count_parameters(model).model_bytes == 8 * 4 + 2 * 8 * 8
    model.weight = nn.Parameter(torch.eye(8).to_sparse_csr(), requires_grad=False)
    assert count_parameters(model).model_bytes == 8 * 4 + 8 * 8 + 9 * 8
    assert count_parameters(model).total == 64


@pytest.fixture
def one_of_four() -> Iterator[None]:
    """A process group of four without the other three."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_of_four")
def test_a_sharded_model_counts_whole_and_says_what_is_here() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (4,))
    model = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10))
    whole = count_parameters(model)
    assert whole.local_bytes is None
    for name in ("weight", "bias"):
        sharded = distribute_tensor(getattr(model[0], name).detach(), mesh, [Shard(0)])
        setattr(model[0], name, nn.Parameter(sharded))
    found = count_parameters(model)
    assert (found.total, found.trainable) == (whole.total, whole.trainable) == (90, 90)
    assert found.model_bytes == whole.model_bytes == 360
    # ten rows over four: three here; the norm is everywhere
    assert found.local_bytes == 4 * (3 * 6 + 3) + 4 * 20
    assert size_of(found).to_dict()["local_bytes"] == found.local_bytes


def test_what_zero_3_shares_out_says_its_size_elsewhere() -> None:
    model = nn.Linear(8, 4, bias=False)
    model.weight = nn.Parameter(torch.zeros(0))
    model.weight.ds_numel, model.weight.ds_tensor = 32, torch.zeros(8)
    counts = count_parameters(model)
    assert (counts.total, counts.model_bytes, counts.local_bytes) == (32, 128, 32)
