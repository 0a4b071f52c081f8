import pytest
import torch
from torch.utils.data import Dataset

from efftrain.data.split import Samples, SplitData, split_indices
from efftrain.errors import DataError


class Numbers(SplitData):
    def read(self):
        train, held_out = split_indices(10, held_out=0.3)
        return Samples(train), Samples(held_out)

    def collate_with(self, training):
        return torch.tensor if training else list


def test_a_split_is_disjoint_complete_and_always_the_same():
    torch.manual_seed(1)
    first = split_indices(10, held_out=0.3)
    torch.manual_seed(2)
    assert split_indices(10, held_out=0.3) == first
    train, held_out = first
    assert sorted(train + held_out) == list(range(10))
    assert len(held_out) == 3


@pytest.mark.parametrize(("share", "expected"), [(0.001, 1), (0.5, 2), (0.99, 3)])
def test_neither_part_is_empty(share, expected):
    assert len(split_indices(4, share)[1]) == expected


def test_training_is_shuffled_by_the_seed_and_the_rest_is_in_order():
    data = Numbers(batch_size=4, num_workers=0)
    data.setup()
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(torch.cat(list(data.train_dataloader())).tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == split_indices(10, 0.3)[0]
    assert [n for batch in data.val_dataloader() for n in batch] == split_indices(10, 0.3)[1]


def test_a_last_batch_that_is_not_full_is_left_out_of_training_only():
    data = Numbers(batch_size=2, num_workers=0, drop_last=True)
    data.setup()
    assert [len(batch) for batch in data.train_dataloader()] == [2, 2, 2]
    assert [len(batch) for batch in data.val_dataloader()] == [2, 1]


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return DataError("x.png is damaged")


class WithBroken(Numbers):
    def read(self):
        return Broken(), Broken()

    def collate_with(self, training):
        return lambda samples: samples[0]


def test_what_a_worker_found_is_raised_by_whoever_takes_the_batch():
    data = WithBroken(batch_size=1, num_workers=0)
    data.setup()
    with pytest.raises(DataError, match=r"^x\.png is damaged$"):
        next(iter(data.train_dataloader()))
