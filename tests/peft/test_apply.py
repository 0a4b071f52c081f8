import copy
import hashlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from efftrain.errors import ConfigError
from efftrain.peft import apply, select


def frozen_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.requires_grad:
            digest.update(name.encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_exactly_the_selection_trains_and_nothing_else_moves(convnet, images, train) -> None:
    model = convnet()
    types, keys = [type(m) for m in model.modules()], list(model.state_dict())
    selection = select(model)
    apply(model, selection)
    assert trainable(model) == set(selection.names)
    before = frozen_hash(model)
    train(model.train(), images)
    assert frozen_hash(model) == before
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert [type(m) for m in model.modules()] == types
    assert list(model.state_dict()) == keys


def test_a_second_selection_replaces_the_first(convnet) -> None:
    model = convnet()
    apply(model, select(model, "norm"))
    apply(model, select(model, "head"))
    assert trainable(model) == {"fc.weight", "fc.bias"}


def test_an_optimizer_built_before_cannot_move_a_frozen_weight_by_a_stale_gradient(
    convnet, images
) -> None:
    # the trap: gradients and momentum from before freezing, with weight decay
    model = convnet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(images).sum().backward()
    apply(model, select(model))
    before = frozen_hash(model)
    optimizer.step()
    assert frozen_hash(model) == before


def test_every_trainable_parameter_gets_a_gradient_under_checkpointing(convnet, images) -> None:
    # the trap: reentrant checkpointing on frozen inputs gives none; non-reentrant must
    model = convnet()
    apply(model, select(model))
    model.train()
    plain = copy.deepcopy(model)
    plain(images).square().sum().backward()
    checkpoint(model, images, use_reentrant=False).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(gradients[name], parameter.grad)


def test_norms_in_a_fast_path_of_torch_still_run(transformer) -> None:
    # the trap: a wrapped norm has no eps, and nn.TransformerEncoder reads it in eval mode
    model = transformer().eval()
    batch = torch.randn(2, 4, 8)
    with torch.inference_mode():
        expected = model(batch)
    apply(model, select(model))
    with torch.inference_mode():
        assert torch.equal(model(batch), expected)


def test_a_selection_of_another_model_changes_nothing(convnet, transformer) -> None:
    model = convnet()
    with pytest.raises(ConfigError, match=r"has no parameter encoder.*made for another model"):
        apply(model, select(transformer()))
    assert len(trainable(model)) == 9
    assert model.bn1.training


def test_an_unknown_policy_changes_nothing(convnet) -> None:
    model = convnet()
    with pytest.raises(
        ConfigError, match=r"peft\.bn_stats=runing is not a policy; did you mean run"
    ):
        apply(model, select(model), bn_stats="runing")
    assert len(trainable(model)) == 9


def test_a_tensor_without_gradients_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    weight = torch.zeros(2, 2, dtype=torch.int8)
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ConfigError, match=r"0\.weight holds int8 and cannot have a gradient"):
        apply(model, select(model, "full"))
