"""Who looks at a tensor of a reduced model, or writes to it, finds what plain torch has."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from efftrain.memory import reduce_memory
from tests.memory.steps import error, gradients, randomize_norms, reduced_copy, train_norms_alone


@pytest.fixture
def images():
    return torch.randn(4, 3, 12, 12)


def same(plain: nn.Module, reduced: nn.Module, batch) -> None:
    assert error(gradients(plain, batch), gradients(reduced, batch)) <= 1e-6


class Quiet(nn.Module):
    """Without in-place operations: torch refuses backward hooks around what is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(self.norm(self.conv(x))) - 1)


def test_hooks_see_what_they_saw(images) -> None:
    def watch(model):
        seen = {}

        def forward_hook(name):
            def hook(module, inputs, output):
                seen[f"{name} out"] = output.detach().clone()

            return hook

        def backward_hook(name):
            def hook(module, into, out):
                seen[f"{name} grad"] = out[0].clone()

            return hook

        for name, module in model.named_children():
            module.register_forward_hook(forward_hook(name))
            module.register_full_backward_hook(backward_hook(name))
        return seen

    plain = randomize_norms(train_norms_alone(Quiet()))
    reduced = reduced_copy(plain)
    expected, found = watch(plain), watch(reduced)
    same(plain, reduced, images.requires_grad_())  # torch warns of inputs without a gradient
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.allclose(expected[name], found[name], atol=1e-6), name


def test_the_gradient_of_a_norms_output_can_be_watched() -> None:
    pair = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    grads = []

    def retain(module, inputs, output):
        output.register_hook(lambda grad: grads.append(grad.clone()))

    x = torch.randn(2, 3, 5, 5)
    for model in (pair, reduced_copy(pair)):
        model[0].register_forward_hook(retain)
        gradients(model, x)
    assert torch.allclose(grads[0], grads[1])
    assert grads[0].any()


def test_a_norms_output_that_is_used_beside_its_activation() -> None:
    class Both(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.norm, self.inplace = nn.BatchNorm2d(3), inplace

        def forward(self, x):
            y = self.norm(x)
            before = y * 2 if self.inplace else y
            z = F.relu(y, inplace=self.inplace)
            return z + 3 * before.sin() + y  # y is z where it was written over

    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    for inplace in (False, True):
        plain = randomize_norms(Both(inplace))
        same(plain, reduced_copy(plain), x)


def test_an_output_that_was_written_to_is_not_taken_for_the_norms() -> None:
    class Shifted(nn.Module):
        def __init__(self, quietly: bool) -> None:
            super().__init__()
            self.norm, self.quietly = nn.BatchNorm2d(3), quietly

        def forward(self, x):
            y = self.norm(x)
            if self.quietly:
                with torch.no_grad():
                    y += 1
            else:
                y += 1
            return F.silu(y)

    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    for quietly in (False, True):
        plain = randomize_norms(Shifted(quietly))
        same(plain, reduced_copy(plain), x)


def test_an_input_that_is_overwritten_before_backward_is_noticed_as_in_torch() -> None:
    pair = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    x = torch.randn(2, 3, 5, 5)
    y = reduced_copy(pair)(x).sum()
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_second_derivative_is_refused_not_wrong() -> None:
    conv = nn.Conv2d(3, 3, 1).requires_grad_(False)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad((reduced_copy(conv)(x) ** 3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_nothing_of_the_graph_is_held_by_the_output(images) -> None:
    norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    train_norms_alone(norm)
    inner = []
    norm[0].register_forward_hook(lambda m, i, o: inner.append(weakref.ref(o)))
    reduce_memory(norm)
    y = norm(images)
    y.sum().backward()
    gc.collect()
    assert inner[0]() is None
    assert y is not None
