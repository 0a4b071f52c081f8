import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    LlamaConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
)

from efftrain.models.interface import ModelInterface, declare, interface_of, interface_of_config


def test_an_image_configuration_says_channels_and_size():
    config = ViTConfig(num_channels=1, image_size=48)
    config.num_labels = 7
    found = interface_of_config(config)
    assert (found.channels, found.image_size, found.num_classes) == (1, (48, 48), 7)
    assert not found.any_image_size
    assert found.vocab_size is None
    assert interface_of_config(ViTConfig(image_size=[32, 64])).image_size == (32, 64)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BertConfig(vocab_size=99, max_position_embeddings=77), (99, 77)),
        (LlamaConfig(vocab_size=50, max_position_embeddings=40), (50, 40)),
    ],
)
def test_a_text_configuration_says_vocabulary_and_length(config, expected):
    found = interface_of_config(config)
    assert (found.vocab_size, found.max_length) == expected
    assert found.channels is None


def test_positions_that_are_never_used_do_not_count():
    """RoBERTa-base has 514 positions and takes 512 tokens: it begins to count at padding + 1."""
    config = RobertaConfig(
        max_position_embeddings=34, pad_token_id=1, vocab_size=20, hidden_size=4,
        num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    assert interface_of(model).max_length == 32
    model(torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))


def test_a_plain_module_says_what_its_first_convolution_and_its_head_do():
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
    found = interface_of(model)
    assert (found.channels, found.num_classes, found.any_image_size) == (4, 5, True)
    assert interface_of(nn.ReLU()) == ModelInterface()


def test_what_a_builder_declares_is_believed_and_copied_with_the_model():
    model = nn.Linear(2, 2)
    declare(model, ModelInterface(channels=9))
    assert interface_of(copy.deepcopy(model)).channels == 9
    assert list(model.state_dict()) == ["weight", "bias"]


def test_it_reads_as_words():
    image = ModelInterface(channels=3, image_size=(224, 224))
    assert str(image) == "3 channels, 224 x 224 pixels"
    assert str(ModelInterface(channels=1, image_size=(64, 64), any_image_size=True)) == "1 channel"
    assert (
        str(ModelInterface(vocab_size=30522, max_length=512))
        == "token ids below 30,522, up to 512 tokens"
    )
