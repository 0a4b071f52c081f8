"""The pass for torch.compile: what is kept, and that gradients stay what they were.

Most tests cut the joint graph as Inductor does, but run the two halves operator by operator: no code is
generated, so they are quick and equal bit for bit.
"""

from __future__ import annotations

import copy
import functools
import re

import pytest
import torch
import torch._inductor.config as inductor
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torchvision.models import mobilenet_v2, resnet50, vit_b_16
from torchvision.models.resnet import Bottleneck

from efftrain.errors import MachineError
from efftrain.memory import joint_graph
from efftrain.memory.joint_graph import compile_reduced, drop_operands, reduce_compiled_memory

MIB = 2**20


def norms_train(model: nn.Module) -> nn.Module:
    for module in model.modules():
        is_norm = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(is_norm)
    return model.train()


def step(model: nn.Module, run, x: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of the parameters, and of x where it has one."""
    run(x).square().mean().backward()
    leaves = [*model.parameters(), x]
    return [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


class Cut:
    """Compiles by cutting the joint graph in two, with or without the pass."""

    def __init__(self, reduced: bool) -> None:
        self.reduced, self.dropped, self.kept_bytes = reduced, 0, 0

    def partition(self, joint, inputs, **options):
        if self.reduced:
            self.dropped += drop_operands(joint.graph)
            joint.graph.lint()
            joint.recompile()
        return min_cut_rematerialization_partition(joint, inputs, **options)

    def note(self, graph, inputs):
        """What backward gets from forward: neither parameters and inputs nor the gradient."""
        for node in graph.graph.find_nodes(op="placeholder"):
            if not node.name.startswith(("primals", "tangents")):
                value = node.meta["val"]
                is_known = isinstance(value, torch.Tensor) and not value._has_symbolic_sizes_strides
                self.kept_bytes += value.nbytes if is_known else 0
        return make_boxed_func(graph.forward)

    def __call__(self, model: nn.Module, **options):
        torch._dynamo.reset()
        backend = aot_autograd(
            fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
            bw_compiler=self.note,
            partition_fn=self.partition,
            decompositions=select_decomp_table(),
        )
        return torch.compile(model, backend=backend, fullgraph=True, **options)


def both(build, x: torch.Tensor, **options):
    """Gradients without and with the pass, and the two cuts."""
    gradients, cuts = [], []
    for reduced in (False, True):
        torch.manual_seed(0)
        cut, leaf = Cut(reduced), x.detach().clone().requires_grad_(x.requires_grad)
        model = build()
        gradients.append(step(model, cut(model, **options), leaf))
        cuts.append(cut)
    return *gradients, *cuts


def test_two_bottlenecks_keep_the_norms_inputs_and_the_masks_of_their_outputs():
    """The published count of the idea: 8.04 MiB and 5.37 MiB after the pass."""
    x = torch.randn(2, 256, 28, 28, requires_grad=True)
    blocks = lambda: norms_train(nn.Sequential(Bottleneck(256, 64), Bottleneck(256, 64)))  # noqa: E731
    expected, found, plain, reduced = both(blocks, x)
    places = 2 * 28 * 28
    by_hand = 2 * places * ((64 + 64 + 256) * 4 + 256)  # fp32 before each norm, one byte of mask
    assert reduced.dropped == 6
    assert by_hand / MIB == pytest.approx(5.36, abs=0.01)
    assert by_hand <= reduced.kept_bytes < 1.01 * by_hand
    assert plain.kept_bytes > 1.4 * by_hand
    assert all(map(torch.equal, found, expected))


CONVOLUTIONS = (
    nn.Conv2d(8, 8, 1),
    nn.Conv2d(8, 8, 1, 2),
    nn.Conv2d(8, 8, (3, 5), 2, (1, 2)),
    nn.Conv2d(8, 8, 3, padding=1, groups=2),
    nn.Conv2d(8, 8, 3, 2, 1, groups=8),
    nn.Conv2d(8, 8, 3, padding=2, dilation=2),
    nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1),
    nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_all_kinds_of_convolution_have_the_same_gradients_bit_for_bit(layout):
    def build():
        parts = [(nn.BatchNorm2d(8), nn.ReLU(), copy.deepcopy(each)) for each in CONVOLUTIONS]
        model = nn.Sequential(*(module for part in parts for module in part))
        return norms_train(model).to(memory_format=layout)

    x = torch.randn(2, 8, 33, 33).contiguous(memory_format=layout).requires_grad_()
    expected, found, plain, reduced = both(build, x)
    assert reduced.dropped == len(CONVOLUTIONS)
    assert reduced.kept_bytes < plain.kept_bytes
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [(nn.Conv1d, nn.BatchNorm1d, (2, 4, 9)), (nn.Conv3d, nn.BatchNorm3d, (2, 4, 5, 5, 5))],
)
def test_lines_and_volumes_too(conv, norm, shape):
    build = lambda: norms_train(nn.Sequential(norm(4), conv(4, 4, 3), norm(4)))  # noqa: E731
    expected, found, _, reduced = both(build, torch.randn(shape))
    assert reduced.dropped == 1
    assert all(map(torch.equal, found, expected))


def test_a_convolution_that_trains_keeps_its_input_and_a_trained_bias_does_not_ask_for_it():
    def build(trained: str):
        model = norms_train(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
        getattr(model[1], trained).requires_grad_()
        return model

    for trained, dropped in (("weight", 0), ("bias", 1)):
        found = both(functools.partial(build, trained), torch.randn(2, 4, 6, 6))
        assert found[3].dropped == dropped
        for one, other in zip(found[0], found[1], strict=True):
            torch.testing.assert_close(one, other)
        assert (found[2].kept_bytes > found[3].kept_bytes) == bool(dropped)


def test_sizes_may_be_dynamic():
    def build():
        return norms_train(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))

    model, cut = build(), Cut(reduced=True)
    twin = copy.deepcopy(model)
    run = cut(model, dynamic=True)
    for batch in (3, 5):
        x = torch.randn(batch, 4, 7, 6)
        for parameter in (*model.parameters(), *twin.parameters()):
            parameter.grad = None
        for found, expected in zip(step(model, run, x), step(twin, twin, x), strict=True):
            torch.testing.assert_close(found, expected)
    assert cut.dropped == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_operator_keeps_what_its_fake_promises(kernel, layout):
    """A fake stride that was wrong for 1x1 kernels made compiled code read beyond the end."""
    x = torch.randn(2, 6, 5, 5).contiguous(memory_format=layout)
    weight = torch.randn(4, 6, kernel, kernel)
    grad = torch.randn(2, 4, 6 - kernel, 6 - kernel)
    arguments = (grad, weight, list(x.shape), list(x.stride()), [1, 1], [0, 0], [1, 1])
    arguments = (*arguments, False, [0, 0], 1)
    torch.library.opcheck(
        torch.ops.efftrain.conv_dgrad.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )
    expected = torch.nn.grad.conv2d_input(list(x.shape), weight, grad)
    torch.testing.assert_close(torch.ops.efftrain.conv_dgrad(*arguments), expected)


@pytest.mark.parametrize("version", ["2.12.1", "2.14.0a0+git", "3.0", "unknown"])
def test_a_version_of_torch_that_was_not_tried_is_refused(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(MachineError, match=re.escape(f"torch {version}: efftrain's pass")):
        compile_reduced(nn.Identity())
    with pytest.raises(MachineError, match="was not tried"), reduce_compiled_memory():
        pass


def test_this_version_of_torch_has_the_hook_that_the_pass_hangs_on():
    """Fails when torch moves it: then try the new version, and widen or narrow NEWEST."""
    assert inductor.joint_custom_pre_pass is None
    with reduce_compiled_memory():
        assert inductor.joint_custom_pre_pass is not None
    assert inductor.joint_custom_pre_pass is None
    assert (
        joint_graph.OLDEST
        <= tuple(map(int, torch.__version__.split(".")[:2]))
        <= joint_graph.NEWEST
    )


def test_a_pass_that_was_there_runs_first_and_has_its_part_in_the_name():
    seen = []

    class Named(type(joint_graph.make_pass()).__mro__[1]):
        def __call__(self, graph):
            seen.append(graph)

        def uuid(self):
            return "mine"

    graph = torch.fx.Graph()
    joint_graph.make_pass([Named()])(graph)
    assert seen == [graph]
    alone, named = joint_graph.make_pass().uuid(), joint_graph.make_pass(Named()).uuid()
    assert named == f"{alone} mine"
    assert joint_graph.make_pass(lambda graph: None).uuid() is None


@pytest.mark.slow
@pytest.mark.parametrize("build", [resnet50, mobilenet_v2, vit_b_16])
def test_a_whole_network_is_one_graph(build):
    with torch.device("meta"):
        model = norms_train(build(weights=None))
        x = torch.zeros(2, 3, 224, 224)
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(x)
    assert found.graph_break_count == 0, found.break_reasons
    assert found.graph_count == 1


# Inductor uses what torch itself deprecates
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.slow
def test_inductor_itself_gives_plain_gradients():
    def build():
        torch.manual_seed(0)
        return norms_train(
            nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 8, 1, 2), nn.BatchNorm2d(8))
        )

    x = torch.randn(2, 3, 20, 20)
    torch._dynamo.reset()
    model, plain = build(), build()
    found = step(model, compile_reduced(model, fullgraph=True), x)
    for one, other in zip(found, step(plain, plain, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
