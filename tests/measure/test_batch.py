import pytest
import torch

from efftrain.measure.batch import samples_in


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(4, 3), 4),
        ((torch.zeros(5, 3), torch.zeros(5)), 5),
        ({"input_ids": torch.zeros(6, 8), "labels": torch.zeros(6)}, 6),
        ([{"nested": (torch.zeros(7),)}], 7),
        ((torch.tensor(1.0), torch.zeros(2)), 2),
        ("no tensor", None),
    ],
)
def test_samples_are_the_first_dimension_of_the_first_tensor(batch, expected):
    assert samples_in(batch) == expected
