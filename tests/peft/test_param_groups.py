import copy

import pytest
import torch

from efftrain.errors import ConfigError
from efftrain.peft import apply, param_groups, select


def by_name(groups: list[dict]) -> dict[str, dict]:
    return {group["name"]: group for group in groups}


def test_norms_and_biases_do_not_decay_and_rates_are_their_own(convnet) -> None:
    model = convnet()
    selection = select(model, "full")
    groups = by_name(param_groups(model, selection, 1e-3, 0.1, norm_lr=1e-2, head_lr=5e-3))
    assert {name: (g["lr"], g["weight_decay"], len(g["params"])) for name, g in groups.items()} == {
        "norm": (1e-2, 0.0, 4),
        "bias": (1e-3, 0.0, 1),
        "head_decayed": (5e-3, 0.1, 1),
        "head": (5e-3, 0.0, 1),
        "other_decayed": (1e-3, 0.1, 2),
    }
    torch.optim.AdamW(list(groups.values()))


def test_each_selected_tensor_is_in_one_group_and_no_other_tensor_is(convnet) -> None:
    model = convnet()
    selection = select(model, "norm_head")
    held = [id(p) for group in param_groups(model, selection) for p in group["params"]]
    assert sorted(held) == sorted(id(model.get_parameter(name)) for name in selection.names)


def test_a_step_without_gradients_leaves_the_norms_where_they_are(convnet) -> None:
    # the trap: with decay 0.1 and rate 1e-2 a scale of 1 falls to 0.37 in 1000 steps
    model = convnet()
    selection = select(model, "norm_head")
    apply(model, selection)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(param_groups(model, selection, lr=1e-2, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(10):
        optimizer.step()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"fc.weight"}


def test_a_selection_of_another_model_is_an_error(convnet, transformer) -> None:
    with pytest.raises(ConfigError, match="has no parameter"):
        param_groups(convnet(), select(transformer()))
