"""Adapters of models in which the names of modules end alike, as peft compares the ends of names."""

import json

import peft
import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.models.adapter_file import write_adapter
from efftrain.models.lora import add_lora
from efftrain.peft import apply, collect_delta, select


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.norm(x))


class Net(nn.Module):
    """Its head, `fc`, is named as the end of `block.fc`; so is its last norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.norm, self.fc = Block(), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.norm(self.block(x)))


def trained(method, lora=False, **options):
    model = Net()
    if lora:
        add_lora(model, r=2, target_modules=["block.fc"])
    apply(model, select(model, method, head="fc", **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model


# peft's LN tuning asks how wide a layer is, which it need not know, and of a norm does not
@pytest.mark.filterwarnings("ignore:Unsupported layer type .*LayerNorm:UserWarning")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("norm_head", {}),
        ("norm", {"exclude": ["block"]}),
        ("norm_head", {"include": ["norm", "fc"]}),
    ],
)
def test_norms_and_head_come_back_where_they_were(tmp_path, method, options):
    model = trained(method, **options)
    write_adapter(model, collect_delta(model), tmp_path)
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path)
    given = torch.randn(5, 4)
    torch.testing.assert_close(loaded(given), model(given))
    assert not torch.allclose(loaded(given), Net()(given))


def test_adapters_come_back_with_norms_of_like_names(tmp_path):
    model = trained("norm+lora", lora=True, exclude=["block.norm"])
    write_adapter(model, collect_delta(model), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == ["block.norm", "norm"]
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path)
    given = torch.randn(5, 4)
    torch.testing.assert_close(loaded(given), model(given))


def test_a_module_with_an_adapter_of_the_heads_name_is_refused(tmp_path):
    model = trained("lora+head", lora=True)
    with pytest.raises(
        ConfigError, match=r"the name of block\.fc ends as that of a module to save"
    ):
        write_adapter(model, collect_delta(model), tmp_path)
