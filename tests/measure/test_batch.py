from collections import UserDict

import pytest
import torch

from efftrain.measure.batch import samples_in, tokens_in


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(4, 3), 4),
        ((torch.zeros(5, 3), torch.zeros(5)), 5),
        ({"input_ids": torch.zeros(6, 8), "labels": torch.zeros(6)}, 6),
        (UserDict(input_ids=torch.zeros(6, 8)), 6),
        ([{"nested": (torch.zeros(7),)}], 7),
        ((torch.tensor(1.0), torch.zeros(2)), 2),
        ("no tensor", None),
    ],
)
def test_samples_are_the_first_dimension_of_the_first_tensor(batch, expected):
    assert samples_in(batch) == expected


IDS = torch.ones(2, 5, dtype=torch.long)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"input_ids": IDS}, 10),
        ({"input_ids": IDS, "attention_mask": MASK}, 7),
        ({"input_ids": IDS, "attention_mask": MASK.bool()}, 7),
        (UserDict(input_ids=IDS, attention_mask=MASK), 7),
        (({"input_ids": IDS, "attention_mask": MASK}, torch.zeros(2)), 7),
        ({"text": {"input_ids": IDS, "attention_mask": MASK}}, 7),
        ({"input_ids": IDS, "attention_mask": torch.zeros(2, 1, 5, 5)}, 10),  # says not who is padding
        ({"pixel_values": torch.zeros(2, 3)}, None),
        ((torch.zeros(4, 3), torch.zeros(4)), None),
        ("no tensor", None),
    ],
)  # fmt: skip
def test_tokens_are_those_that_are_no_padding(batch, expected):
    assert tokens_in(batch) == expected


def test_tokens_on_another_device_are_left_to_it():
    ids, mask = IDS.to("meta"), MASK.to("meta")
    assert tokens_in({"input_ids": ids}) == 10
    assert tokens_in({"input_ids": ids, "attention_mask": mask}).device.type == "meta"
