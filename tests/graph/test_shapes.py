"""Results that are made without asking torch are those that torch would have made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from efftrain.graph import shapes
from efftrain.graph.observer import Call, Observer, storage_key, tensors_in
from efftrain.graph.rehearsal import Rehearsal, rehearse
from efftrain.graph.shape_rules import RULES
from efftrain.graph.shapes import ShapeMode
from efftrain.profiling.loss import loss_of
from tests.profiling import zoo


def what_is_seen(result: Any, given: list[Tensor]) -> list[Any]:
    """Of each tensor: type, sizes, strides, device, and which argument's memory it stands in.

    The stride of a dimension of one position means nothing; torch's own kernels differ in it.
    """
    memory = [storage_key(tensor) for tensor in given]
    parts = result if isinstance(result, (list, tuple)) else [result]
    return [type(result) in (list, tuple)] + [
        (
            tuple(part.shape),
            [step for size, step in zip(part.shape, part.stride(), strict=True) if size > 1],
            part.storage_offset(),
            part.dtype,
            part.device,
            part.untyped_storage().nbytes(),
            [position for position, key in enumerate(memory) if key == storage_key(part)],
            [position for position, each in enumerate(given) if each is part],
        )
        if isinstance(part, Tensor)
        else part
        for part in parts
    ]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Operators whose results were made here and compared with torch's."""
    shapes.forget_shapes()
    names: list[str] = []
    ours = ShapeMode.result_of

    def both(mode: ShapeMode, func: Any, args: Any, kwargs: Any) -> Any:
        result = ours(mode, func, args, kwargs)
        if func is shapes._DEVICE:
            assert result == func(*args)
        elif shapes._kinds.get(func) != "unknown":
            given = tensors_in([*args, *kwargs.values()])
            torchs = func(*args, **kwargs)
            assert what_is_seen(result, given) == what_is_seen(torchs, given), (func, args)
            names.append(func.name().removeprefix("aten::"))
        return result

    monkeypatch.setattr(ShapeMode, "result_of", both)
    return names


def images(size: int = 64) -> Tensor:
    return torch.empty(2, 3, size, size, device="meta")


def vision(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


def encoder() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, device="meta")
    return layer, torch.empty(2, 5, 16, device="meta")


def swin() -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.SwinTransformer([4, 4], 16, [1, 2], [2, 4], [4, 4])


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "residual": lambda: (vision("resnet18"), images()),
    "squeeze": lambda: (vision("mobilenet_v3_small"), images()),
    "squeezed": lambda: (vision("squeezenet1_1"), images()),
    "shuffled": lambda: (vision("shufflenet_v2_x0_5"), images()),
    "channels_last": lambda: (
        vision("mobilenet_v2").to(memory_format=torch.channels_last),
        images().to(memory_format=torch.channels_last),
    ),
    "bfloat16": lambda: (vision("resnet18").bfloat16(), images().bfloat16()),
    "double": lambda: (vision("resnet18").double(), images().double()),
    "windows": lambda: (swin(), images()),
    "encoder": encoder,
    "llama": lambda: zoo.build("llama")[:2],
    "recurrent": lambda: zoo.build("lstm")[:2],
}


@pytest.mark.parametrize(
    ("case", "training"),
    [
        *((case, True) for case in CASES),
        ("residual", False),
        ("squeeze", False),
        ("encoder", False),
    ],
)
def test_results_are_torchs_own(case: str, training: bool, compared: list[str]) -> None:
    model, batch = CASES[case]()

    def two_steps(rehearsal: Rehearsal) -> None:
        parameters = list(rehearsal.model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        with Observer(lambda call: None):
            for _ in range(2):  # the second time, from memory
                loss = loss_of(rehearsal.forward(), None)
                assert loss is not None
                loss.backward()
                optimizer.step()

    rehearse(two_steps, model.train(training), batch)
    made = Counter(compared)
    assert made["detach"] > 0
    assert made.total() > 200
    asked_of_torch = {name for name, kind in shapes._kinds.items() if kind == "unknown"}
    assert len(asked_of_torch) < 20


VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "slice of channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:, :, :1].expand(x.shape),
    "one for a channel": lambda x: x[:, :, :1, :1],
    "one for a column": lambda x: x[:1, :1, :1],
}


@pytest.mark.parametrize("sizes", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1)])
def test_operands_in_any_order_give_what_the_real_kernels_give(sizes: tuple[int, ...]) -> None:
    aten, applied = torch.ops.aten, 0
    with ShapeMode() as fakes:
        pass
    for first in VARIANTS.values():
        alone = first(torch.rand(sizes))
        for second in VARIANTS.values():
            pair = [alone, second(torch.rand(sizes))]
            calls: list[tuple[Any, list[Any]]] = [
                (aten.add.Tensor, pair), (aten.mul.Tensor, pair), (aten.add_.Tensor, pair),
                (aten.sigmoid_backward.default, pair), (aten.relu.default, [alone]),
                (aten.threshold_backward.default, [*pair, 0.0]), (aten.gelu.default, [alone]),
            ]  # fmt: skip
            for func, args in calls:
                given = [fakes.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
                shapes = RULES[func](given)
                if shapes is None:
                    continue
                real = func(*[a.clone() if func is aten.add_.Tensor else a for a in args])
                assert shapes[0] is not None
                assert shapes[0].sizes == real.shape
                if func is not aten.add_.Tensor:
                    far = zip(real.shape, shapes[0].strides, real.stride(), strict=True)
                    assert all(ours == torchs for size, ours, torchs in far if size > 1)
                applied += 1
    assert applied > 50


def test_wrong_shapes_are_refused_as_torch_refuses_them() -> None:
    def run(rehearsal: Rehearsal) -> None:
        with Observer(lambda call: None):
            rehearsal.forward()

    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x, (3,), torch.ones(4), torch.ones(4))

    biased = nn.Conv2d(3, 4, 3)
    biased.bias = nn.Parameter(torch.zeros(5))
    for model, batch in (
        (Norm(), torch.zeros(1, 3)),
        (biased, torch.zeros(1, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3), torch.zeros(1, 2, 8, 8)),
        (nn.Conv2d(3, 4, 9), torch.zeros(1, 3, 8, 8)),
        (nn.Linear(3, 4), torch.zeros(1, 2)),
        (nn.BatchNorm2d(3), torch.zeros(1, 2, 8, 8)),
        (nn.LayerNorm(3), torch.zeros(1, 2)),
    ):
        with pytest.raises(Exception, match=r"."):
            model(batch)  # it is wrong
        with pytest.raises(RuntimeError):
            rehearse(run, model, batch)


def test_equal_numbers_of_different_types_are_told_apart() -> None:
    """1, 1.0 and True are equal as keys; integers plus 1.0 are floats."""

    class Adds(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x + 1, x + 1.0, x * True, x + 1, x + 1.0]

    def run(rehearsal: Rehearsal) -> list[torch.dtype]:
        with Observer(lambda call: None):
            return [tensor.dtype for tensor in rehearsal.forward()]

    whole, real = torch.int64, torch.float32
    found = rehearse(run, Adds(), torch.zeros(3, dtype=torch.long))
    assert found == [whole, real, whole, whole, real]


def test_a_tensor_whose_value_is_known_keeps_it() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            times = torch.tensor(2) + torch.tensor(1)
            return x.repeat(int(times.item()))

    def run(rehearsal: Rehearsal) -> tuple[int, bool]:
        with Observer(lambda call: None):
            return rehearsal.forward().numel(), rehearsal.values

    assert rehearse(run, Counts(), torch.zeros(4)) == (12, False)


def test_operators_of_a_library_are_left_to_it() -> None:
    with torch.library._scoped_library("ours", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: torch.cat([x, x]), "Meta")

        class Twice(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.ours.twice(x)

        seen: list[Call] = []

        def run(rehearsal: Rehearsal) -> Tensor:
            with Observer(seen.append):
                return rehearsal.forward()

        assert rehearse(run, Twice(), torch.zeros(3)).shape == (6,)
        assert next(call.operator.name for call in seen) == "ours::twice"
