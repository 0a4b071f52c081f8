import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from efftrain.data.digits import MEAN, STD, DigitsData, load_digits_split, standardise
from efftrain.data.jitter import jitter
from efftrain.data.shift import CONTRAST, GRAIN, LIGHT, camera_shift


def test_the_split_is_stratified_disjoint_and_complete():
    (train, train_labels), (held_out, held_out_labels) = load_digits_split()
    assert train.shape == (1347, 1, 32, 32)
    assert held_out.shape == (450, 1, 32, 32)
    labels = torch.cat([train_labels, held_out_labels])
    assert torch.equal(labels.sort().values, torch.tensor(load_digits().target).sort().values)
    counts = held_out_labels.bincount() / labels.bincount()
    assert counts.min() > 0.24
    assert counts.max() < 0.26


def test_images_are_the_scans_enlarged():
    (train, _), _ = load_digits_split()
    assert train.min() == 0
    assert train.max() == 1
    # Each 4 x 4 block of a fourfold bilinear enlargement averages, inside, to a mix of neighbours;
    # a constant scan stays constant, and the mean of all is kept up to the edges.
    scans = load_digits().data.mean() / 16
    assert train.mean().item() == pytest.approx(scans, abs=0.005)


def test_the_constants_are_those_of_the_clean_training_pixels():
    (train, _), _ = load_digits_split()
    assert train.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert train.std().item() == pytest.approx(STD, abs=0.03)
    assert standardise(torch.tensor([MEAN, MEAN + STD])).tolist() == pytest.approx([0, 1])


def test_the_held_out_images_are_the_same_for_every_shift():
    labels = []
    for shift in ("none", "camera"):
        data = DigitsData(shift=shift)
        data.setup()
        labels.append(torch.cat([batch[1] for batch in data.val_dataloader()]))
    assert torch.equal(*labels)


def test_batches_are_standardised_images_and_labels():
    data = DigitsData(batch_size=50)
    data.setup()
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (50, 1, 32, 32)
    assert images.min().item() == pytest.approx(-MEAN / STD)
    assert labels.dtype == torch.int64
    assert sum(len(batch[1]) for batch in data.train_dataloader()) == 1347


def test_a_last_batch_that_is_not_full_can_be_left_out():
    data = DigitsData(batch_size=64, drop_last=True)
    data.setup()
    assert {len(batch[1]) for batch in data.train_dataloader()} == {64}


def test_augmented_training_images_differ_each_time_and_held_out_ones_do_not():
    data = DigitsData(augment=True)
    data.setup()
    sums = [sum(batch[0].sum() for batch in data.val_dataloader()) for _ in range(2)]
    assert sums[0] == sums[1]
    torch.manual_seed(0)
    image = torch.rand(4, 1, 32, 32)
    assert not torch.equal(jitter(image), jitter(image))


def test_the_shift_is_the_same_every_time_and_another_for_another_seed():
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first = camera_shift(images, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, camera_shift(images, seed=3))
    assert not torch.equal(first, camera_shift(images, seed=4))


def test_the_shift_of_a_blank_image_is_light_and_grain():
    shifted = camera_shift(torch.zeros(64, 1, 32, 32), seed=0)
    # black becomes (1 - contrast) / 2, and a ramp through the middle leaves the mean as it is
    assert shifted.mean().item() == pytest.approx((1 - CONTRAST) / 2, abs=0.01)
    # along its direction the ramp is x cos + y sin with x, y even in -1..1: variance LIGHT^2 / 3
    expected = np.sqrt(LIGHT**2 / 3 * (33 / 31) + GRAIN**2)
    assert shifted.std().item() == pytest.approx(expected, rel=0.05)
    assert shifted.min() >= 0


def test_the_shift_turns_the_image():
    bar = torch.zeros(32, 1, 32, 32)
    bar[:, :, :, 15:17] = 1.0  # upright
    shifted = camera_shift(bar, seed=0).mean(0)[0]
    upper, lower = shifted[4:8], shifted[24:28]
    centre = [(half.clamp(min=0.3) - 0.3).sum(0) for half in (upper, lower)]
    x = torch.arange(32.0)
    left, right = [(c * x).sum() / c.sum() for c in centre]
    assert abs(left - right) > 5, "the bar leans to one side"
