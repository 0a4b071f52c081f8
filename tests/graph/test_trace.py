"""The operations of a forward pass, their memory and their modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efftrain.graph.trace import Graph, Reference, trace


def operators(graph: Graph) -> list[str]:
    return [operation.operator.name for operation in graph.operations]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        return torch.cat([y.flatten(2), y.flatten(2).mT.mT], 1)


def test_operations_stand_in_order_with_their_modules() -> None:
    graph = trace(Branches(), torch.zeros(5, 3, 2, 2))
    assert operators(graph)[:2] == ["convolution", "relu_"]
    assert [operation.path for operation in graph.operations][:3] == ["first", "act", ""]
    assert graph.types["act"] == "ReLU"
    assert graph.leaves == {"first", "act"}


def test_one_sample_of_the_batch_is_traced() -> None:
    graph = trace(Branches(), torch.zeros(5, 3, 2, 2))
    assert [graph.values[index].shape for index in graph.inputs] == [(1, 3, 2, 2)]
    assert [graph.values[index].shape for index in graph.outputs] == [(1, 8, 4)]


def test_views_and_in_place_results_stand_in_the_memory_of_their_base() -> None:
    graph = trace(Branches(), torch.zeros(5, 3, 2, 2))
    convolved = graph.operations[0].outputs[0]
    *inside, cat = graph.operations
    assert {graph.values[i].memory for op in inside for i in op.outputs} == {convolved}
    assert graph.values[cat.outputs[0]].memory == cat.outputs[0]


def test_arguments_name_the_tensors_they_stand_for() -> None:
    graph = trace(nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.zeros(1, 3, 8, 8))
    (convolution,) = graph.operations
    image, weight, bias, stride, padding = convolution.arguments[:5]
    assert image == Reference(graph.inputs[0])
    assert graph.values[weight.index].shape == (4, 3, 3, 3)
    assert graph.values[bias.index].shape == (4,)
    assert (stride, padding) == ([2, 2], [1, 1])


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(4, 1)), nn.Parameter(torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.up @ self.down) + torch.ones_like(x)


def test_what_is_made_from_weights_alone_is_no_activation() -> None:
    graph = trace(Adapter(), torch.zeros(2, 4))
    data = {
        operation.operator.name: graph.values[operation.outputs[0]].data
        for operation in graph.operations
    }
    assert [data["ones_like"], data["add"]] == [False, True]
    merged, product = (op for op in graph.operations if op.operator.name == "mm")
    assert not graph.values[merged.outputs[0]].data
    assert graph.values[product.outputs[0]].data


def test_each_call_of_a_module_has_its_number() -> None:
    layer = nn.ReLU()
    graph = trace(nn.Sequential(layer, layer), torch.zeros(1, 4))
    first, second = graph.operations
    assert first.path == second.path == "0"
    assert first.call != second.call


def test_eval_mode_is_traced_and_the_model_keeps_its_own_modes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout()).train()
    model[1].eval()
    assert operators(trace(model, torch.zeros(1, 4))) == ["empty", "native_batch_norm"]
    assert [module.training for module in model.modules()] == [True, True, False]


def test_tied_weights_stay_tied_and_the_meta_device_is_enough() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    graph = trace(model, torch.zeros(1, 4, device="meta"))
    bases = [
        graph.values[op.inputs[0]].memory for op in graph.operations if op.operator.name == "t"
    ]
    assert bases[0] == bases[1]
    assert not graph.run_with_values


def test_batches_may_be_keywords_or_several_arguments() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, scale: Tensor, flag: bool = True) -> dict[str, Tensor]:
            return {"y": x * scale} if flag else {}

    batch = torch.zeros(3, 4)
    for given in ([batch, batch], {"x": batch, "scale": batch, "flag": True}):
        graph = trace(Two(), given)
        assert len(graph.inputs) == 2
        assert [graph.values[index].shape for index in graph.outputs] == [(1, 4)]
