"""In a model of low precision the trained norms move as in float32."""

import copy
import importlib
import pickle

import pytest
import torch
from torch import nn

from efftrain.peft import (
    apply,
    hold_float32,
    load_delta,
    release_float32,
    save_delta,
    select,
    unload_delta,
)

LR = 1e-4


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 30, (4, 12), generator=torch.Generator().manual_seed(0))


def llama(dtype: torch.dtype = torch.float32):
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=30, attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(dtype)


def run(model, tokens, steps: int = 40, **options) -> dict[str, torch.Tensor]:
    """Train the norms with AdamW; returns by how much each moved."""
    apply(model, select(model), **options)
    start = {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    return {n: p.detach().float() - start[n] for n, p in model.named_parameters() if n in start}


def test_a_bfloat16_model_moves_as_the_float32_model_does(tokens) -> None:
    # the trap: at 1e-4 a bfloat16 scale of 1 never moves (its neighbour is 1.0078)
    plain = run(llama(torch.bfloat16), tokens, float32_norms=False)
    assert all(bool((moved == 0).all()) for moved in plain.values())

    exact = run(llama(), tokens)
    held = run(llama(torch.bfloat16), tokens)
    assert held.keys() == exact.keys()
    for name, moved in held.items():
        assert float((moved != 0).float().mean()) == 1.0
        # Adam's steps are of one size: where the noise of bfloat16 turns a gradient's sign, a value
        # goes another way; the bulk has to go the same way, as far
        together = torch.nn.functional.cosine_similarity(moved, exact[name], dim=0)
        assert float(together) > 0.95, name
        assert 0.9 < float(moved.norm() / exact[name].norm()) < 1.1, name


def test_names_types_and_keys_stay_and_the_rest_stays_low(tokens) -> None:
    model = llama(torch.bfloat16)
    names, keys = [n for n, _ in model.named_parameters()], list(model.state_dict())
    types, identities = [type(m) for m in model.modules()], [id(p) for p in model.parameters()]
    selection = select(model)
    apply(model, selection)
    assert [n for n, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == types
    assert [id(p) for p in model.parameters()] == identities  # an optimizer built before holds them
    kinds = {n: p.dtype for n, p in model.named_parameters()}
    assert {n for n, kind in kinds.items() if kind == torch.float32} == set(selection.names)
    assert model(tokens).logits.dtype == torch.bfloat16


def test_every_norm_answers_in_the_precision_that_it_was_asked_in() -> None:
    layers = {
        "LayerNorm": (nn.LayerNorm(8), (2, 3, 8)),
        "RMSNorm": (nn.RMSNorm(8), (2, 3, 8)),
        "GroupNorm": (nn.GroupNorm(2, 8), (2, 8, 3)),
        "InstanceNorm1d": (nn.InstanceNorm1d(8, affine=True), (2, 8, 3)),
        "BatchNorm1d": (nn.BatchNorm1d(8), (2, 8, 3)),
    }
    for name, (layer, shape) in layers.items():
        batch = torch.randn(shape)
        expected = copy.deepcopy(layer)(batch)
        for dtype in (torch.bfloat16, torch.float16):
            model = copy.deepcopy(nn.Sequential(layer)).to(dtype)
            assert hold_float32(model, ["0.weight"]) == ("0",)
            output = model(batch.to(dtype))
            output.float().sum().backward()
            assert output.dtype == dtype, name
            assert torch.allclose(output.float(), expected, atol=0.05), name
            assert model[0].weight.grad.dtype == torch.float32
            assert hold_float32(model, ["0.weight"]) == ()  # it is held already


def test_holding_changes_the_output_by_less_than_the_precision(tokens) -> None:
    low = llama(torch.bfloat16)
    before = low(tokens).logits.float()
    apply(low, select(low))
    exact = llama().float()
    exact.load_state_dict({n: v.float() for n, v in low.state_dict().items()})
    reference = exact(tokens).logits
    after = low(tokens).logits.float()
    assert (after - reference).abs().max() <= 1.5 * (before - reference).abs().max()


def test_releasing_gives_back_the_bits_where_nothing_trained(tokens) -> None:
    model = llama(torch.bfloat16)
    before, logits = copy.deepcopy(model.state_dict()), model(tokens).logits
    apply(model, select(model))
    assert len(release_float32(model)) == 5
    assert all(torch.equal(v, before[n]) and v.dtype == before[n].dtype
               for n, v in model.state_dict().items())  # fmt: skip
    assert torch.equal(model(tokens).logits, logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_held_by_hooks_of_its_own(tokens, carry) -> None:
    model = llama(torch.bfloat16)
    apply(model, select(model))
    twin = carry(model)
    assert torch.equal(twin(tokens).logits, model(tokens).logits)
    release_float32(twin)
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    twin(tokens)
    assert model.model.norm.weight.dtype == torch.float32
    model(tokens)


def test_running_statistics_that_move_are_float32(images) -> None:
    # the trap: at a momentum of 1e-3 a bfloat16 running variance sticks
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=1e-3)).to(torch.bfloat16)
    exact = copy.deepcopy(model).float().train()
    apply(model, select(model, "norm_bias"), bn_stats="update")
    model.train()
    for _ in range(20):
        model(images.to(torch.bfloat16))
        exact(images)
    assert model[1].running_var.dtype == torch.float32
    assert torch.allclose(model[1].running_var, exact[1].running_var, rtol=1e-3)


def test_a_float32_model_is_left_alone() -> None:
    model = llama()
    apply(model, select(model))
    assert hold_float32(model, ["model.norm.weight"]) == ()
    assert not any(m._forward_hooks for m in model.modules())


def test_a_delta_of_a_low_precision_model_comes_back_and_goes_to_the_bit(tokens, tmp_path) -> None:
    model = llama(torch.bfloat16)
    run(model, tokens, steps=3)
    save_delta(model, tmp_path / "task.safetensors")
    base = llama(torch.bfloat16)
    before, logits = copy.deepcopy(base.state_dict()), base(tokens).logits
    load_delta(base, tmp_path / "task.safetensors")
    assert torch.equal(base(tokens).logits, model(tokens).logits)
    assert not torch.equal(base(tokens).logits, logits)
    unload_delta(base)
    assert all(torch.equal(v, before[n]) and v.dtype == before[n].dtype
               for n, v in base.state_dict().items())  # fmt: skip
    assert torch.equal(base(tokens).logits, logits)


def test_a_frozen_part_of_a_held_norm_counts_as_the_base_that_it_was(images, tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(torch.bfloat16)
    base = copy.deepcopy(model)
    apply(model, select(model, "norm_bias"))
    assert model[1].weight.dtype == torch.float32  # frozen, and raised with the bias
    with torch.no_grad():
        model[1].bias += 1e-4
    save_delta(model, tmp_path / "task.safetensors")
    load_delta(base, tmp_path / "task.safetensors")
    batch = images.to(torch.bfloat16)
    assert torch.equal(base.eval()(batch), model.eval()(batch))


def test_a_scale_that_two_norms_share_is_held_in_both() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)).to(torch.bfloat16)
    model[2].weight = model[0].weight
    assert hold_float32(model, ["0.weight"]) == ("0", "2")
    assert model(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert release_float32(model) == ("0", "2")
    assert not any(m._forward_hooks for m in model)


def test_held_norms_and_policies_compile_into_one_graph(images) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(4), nn.Linear(4, 2),
    ).to(torch.bfloat16)  # fmt: skip
    apply(model, select(model))
    batch = images.to(torch.bfloat16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for mode in (True, False):
        compiled.train(mode)
        assert torch.equal(compiled(batch), model(batch))
