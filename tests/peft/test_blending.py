import pytest
import torch

from efftrain.errors import CheckpointError
from efftrain.peft import Delta, interpolate, load_delta, write_delta
from efftrain.peft.blending import blend


def delta(value: float, base: str = "b", name: str = "bn1.weight", size: int = 4) -> Delta:
    tensors = {
        name: torch.full((size,), value),
        "bn1.num_batches_tracked": torch.tensor(int(value)),
    }
    return Delta(tensors, "norm", {"norm": (name,)}, "update", base, {"conv1": base})


@pytest.mark.parametrize(
    ("weight", "value", "count"), [(0, 2, 2), (0.25, 3, 2), (0.75, 5, 6), (1, 6, 6)]
)
def test_values_lie_between_the_two_and_counters_are_taken(weight, value, count) -> None:
    mixed = interpolate(delta(2.0), delta(6.0), weight)
    assert torch.equal(mixed.tensors["bn1.weight"], torch.full((4,), float(value)))
    assert mixed.tensors["bn1.num_batches_tracked"] == count
    assert mixed.user["interpolated"] == repr(weight)


def test_the_ends_are_exact_to_the_bit() -> None:
    a, b = torch.rand(100), torch.rand(100)
    assert torch.equal(blend("x", a, b, 0.0), a)
    assert torch.equal(blend("x", a, b, 1.0), b)


def test_files_are_read_and_the_result_loads(convnet, tmp_path) -> None:
    paths = [write_delta(delta(v), tmp_path / f"{v}.safetensors").path for v in (2.0, 6.0)]
    model = convnet()
    load_delta(model, interpolate(*paths, weight=0.5), check_base=False)
    assert torch.equal(model.bn1.weight, torch.full((4,), 4.0))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (delta(1.0, base="c"), "belong to different base models"),
        (delta(1.0, name="bn2.weight"), r"different tensors \(2, first bn1\.weight\)"),
        (delta(1.0, size=3), r"different tensors \(1, first bn1\.weight\)"),
    ],
)
def test_deltas_that_do_not_belong_together_are_refused(other, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        interpolate(delta(2.0), other, 0.5)
