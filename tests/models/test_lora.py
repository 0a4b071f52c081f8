"""Low-rank adapters: equal at the start, exact when merged, in a delta of their own."""

import copy

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from torch import nn

from efftrain.errors import CheckpointError, ConfigError
from efftrain.models.lora import add_lora, merge_lora
from efftrain.peft import apply, load_delta, save_delta, select, unload_delta

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.bn, self.mid, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.mid(self.bn(self.depthwise(self.conv(x))).mean((2, 3))))


def vit():
    return torchvision.models.VisionTransformer(32, 8, 1, 4, 32, 64)


def images():
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def train(model):
    """Values as a training leaves them, without one."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def adapted(seed=0, method="lora", **options):
    torch.manual_seed(seed)
    model = Net().eval()
    paths = add_lora(model, **options)
    apply(model, select(model, method))
    return model, paths


def test_adapters_change_nothing_until_they_are_trained():
    torch.manual_seed(0)
    plain = Net().eval()
    model = copy.deepcopy(plain)
    assert add_lora(model, r=2) == ("conv", "mid")  # no head, no grouped convolution
    assert torch.equal(model(images()), plain(images()))


def test_tied_weights_are_left_out():
    model = Net()
    model.other = nn.Linear(8, 6)
    model.other.weight = model.mid.weight
    assert add_lora(model) == ("conv",)


def test_only_the_adapters_train_and_are_counted():
    model, _ = adapted(r=2)
    trains = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    # A: r x inputs (x kernel), B: outputs x r
    assert trains == {
        "conv.lora_A.default.weight": 2 * 3 * 9,
        "conv.lora_B.default.weight": 8 * 2,
        "mid.lora_A.default.weight": 2 * 8,
        "mid.lora_B.default.weight": 6 * 2,
    }
    assert select(model, "lora").trainable == 98
    assert select(model, "norm+lora").trainable == 98 + 16
    assert select(model, "norm+lora+head").trainable == 98 + 16 + 14


def test_merging_gives_the_plain_model_with_the_same_outputs():
    model, _ = adapted(r=4, alpha=2.0)
    model.double()
    train(model)
    expected = model(images().double())
    weight = model.mid.base_layer.weight + 2.0 / 4 * (
        model.mid.lora_B.default.weight @ model.mid.lora_A.default.weight
    )
    assert merge_lora(model) == ("conv", "mid")
    assert set(model.state_dict()) == set(Net().state_dict())
    assert [type(one) for one in model.modules()] == [type(one) for one in Net().modules()]
    torch.testing.assert_close(model.mid.weight, weight)
    torch.testing.assert_close(model(images().double()), expected)
    assert not hasattr(model, "peft_config")


def test_a_delta_holds_the_adapters_and_finds_its_base(tmp_path):
    model, _ = adapted(method="norm+lora")
    fresh = adapted(method="norm+lora")[0]
    before = fresh(images())
    train(model)
    save_delta(model, tmp_path / "d.safetensors")
    held = load_file(tmp_path / "d.safetensors")
    assert {name.split(".")[1] for name in held} == {"lora_A", "lora_B", "weight", "bias"}
    assert not any("base_layer" in name for name in held)
    load_delta(fresh, tmp_path / "d.safetensors")
    assert torch.equal(fresh(images()), model(images()))
    unload_delta(fresh)
    assert torch.equal(fresh(images()), before)
    with pytest.raises(CheckpointError, match="trained on another base"):
        load_delta(adapted(seed=1, method="norm+lora")[0], tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    ("targets", "paths"),
    [(["mid"], ("mid",)), ("co*", ("conv",)), (["fc", "conv"], ("conv", "fc"))],
)
def test_targets_are_paths_ends_of_paths_or_globs(targets, paths):
    model = Net()
    assert add_lora(model, target_modules=targets) == paths


def test_a_target_that_is_nowhere_is_named_with_its_neighbour():
    with pytest.raises(ConfigError, match=r"target_modules=cnov .* did you mean conv\?"):
        add_lora(Net(), target_modules=["cnov"])


def test_a_target_that_peft_refuses_is_one_line():
    with pytest.raises(ConfigError, match="BatchNorm2d") as caught:
        add_lora(Net(), target_modules=["bn"])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("build", "target", "what"),
    [
        (Net, "depthwise", "a grouped convolution"),
        (vit, "self_attention", "nn.MultiheadAttention"),
        (vit, "out_proj", "nn.MultiheadAttention"),
    ],
)
def test_what_could_not_be_merged_is_refused(build, target, what):
    with pytest.raises(ConfigError) as caught:
        add_lora(build(), target_modules=[target])
    assert target in str(caught.value)
    assert what in str(caught.value)


def test_adapters_twice_and_merging_none_are_errors():
    model, _ = adapted()
    with pytest.raises(ConfigError, match="has adapters already"):
        add_lora(model)
    with pytest.raises(ConfigError, match="has no adapters"):
        merge_lora(Net())
    with pytest.raises(ConfigError, match="no linear layer or convolution outside its head"):
        add_lora(nn.Sequential(nn.Flatten(), nn.LayerNorm(4)))


def test_what_trained_before_goes_on_to_do_so():
    model = Net()
    model.bn.requires_grad_(False)
    add_lora(model)
    assert not model.bn.weight.requires_grad
    assert model.mid.base_layer.weight.requires_grad


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY))


def gpt2():
    config = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 50}
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, **ids))


@pytest.mark.parametrize(
    ("build", "inputs", "layers", "targets"),
    [
        (llama, torch.arange(6)[None], 2 * 7, None),
        (llama, torch.arange(6)[None], 2 * 2, ["q_proj", "v_proj"]),
        (gpt2, torch.arange(6)[None], 4, None),
        (lambda: timm.create_model("mobilenetv2_035"), torch.randn(1, 3, 32, 32), 35, None),
        (vit, torch.randn(1, 3, 32, 32), 3, None),  # patches and MLP, none of the attention
    ],
    ids=["llama", "llama-qv", "gpt2", "mobilenet", "vit"],
)
def test_any_model_takes_adapters_and_gives_them_back(build, inputs, layers, targets):
    torch.manual_seed(0)
    model = build().eval()
    paths = add_lora(model, r=2, target_modules=targets)
    assert len(paths) == layers
    apply(model, select(model, "lora"))
    train(model)
    with torch.no_grad():
        trained = _logits(model(inputs))
        merge_lora(model)
        merged = _logits(model(inputs))
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == set(build().state_dict())


def _logits(output):
    return output if isinstance(output, torch.Tensor) else output.logits
