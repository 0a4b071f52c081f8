from collections import OrderedDict

import pytest
import torch
from torch import nn

from efftrain.render.profile_rows import find_rows, fitting_depth
from efftrain.render.profile_table import type_text
from tests.render.conftest import Block, Small, profile_of


def names(row, depth=9):
    return [(level, each.name) for level, each in row.visible(depth)]


def child(row, name):
    return next(each for each in row.children if each.name == name)


def test_blocks_alike_are_one_row_and_a_container_of_one_row_shares_it(small):
    assert names(find_rows(small)) == [
        (0, "Small"),
        (1, "stem"),
        (1, "body.blocks.0-2"),
        (2, "lin"),
        (2, "act"),
        (1, "head"),
    ]


def test_a_row_is_the_sum_of_what_is_below_it_and_of_what_it_does_itself(small):
    tree = find_rows(small)
    blocks = child(tree, "body.blocks.0-2")
    assert (blocks.type, blocks.repeats, blocks.output_shape) == ("Block", 3, (1, 4))
    assert (blocks.total.params, blocks.total.macs) == (48, 48)
    assert blocks.total.activations == 3 * (4 + 4)
    assert blocks.own.activations == 3 * 4  # the sums
    assert child(blocks, "lin").total.activations == 3 * 4
    # per block: a product's input and a ReLU's result, 2 samples x 4 elements x 4 bytes each
    assert blocks.total.saved_bytes == 3 * (32 + 32)
    assert child(blocks, "lin").total.saved_bytes == 3 * 32


def test_the_whole_model_has_the_totals_of_the_profile(small):
    total = find_rows(small).total
    assert (total.params, total.trainable, total.macs) == (74, 74, 68)
    # with the input's 3, which no layer makes
    assert total.activations == small.activations.total == 3 + 4 + 24 + 2
    assert total.saved_bytes == small.memory.saved.saved_bytes


def test_unmerged_rows_keep_every_path(small):
    tree = find_rows(small, merge=False)
    paths = [row.path for _, row in tree.visible(9)]
    assert [p for p in paths if p.startswith("body")] == [
        "body.blocks",
        *(f"body.blocks.{i}{below}" for i in range(3) for below in ("", ".lin", ".act")),
    ]


def test_blocks_of_which_one_is_frozen_are_not_alike():
    model = Small()
    model.body["blocks"][0].requires_grad_(False)
    tree = find_rows(profile_of(model, 3))
    blocks = child(tree, "body.blocks")
    assert [row.name for row in blocks.children] == ["0", "1-2"]
    assert [row.total.trainable for row in blocks.children] == [0, 32]
    assert tree.total.trainable == 58  # of 74, without a block's 16


def test_blocks_of_other_sizes_and_layers_of_other_names_are_not_alike():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    tree = find_rows(profile_of(model, 4))
    assert [row.name for row in tree.children] == ["0", "1", "2-3"]
    two = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    assert [row.name for row in find_rows(profile_of(two, 4)).children] == ["a", "b"]


def test_blocks_that_keep_nothing_for_backward_are_not_like_those_that_do():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    for block in model:
        block.requires_grad_(False)
    model[1][0].bias.requires_grad_(True)  # no parameter of the third trains
    tree = find_rows(profile_of(model, 4))
    assert [(row.name, row.total.saved_bytes > 0) for row in tree.children] == [
        ("0", False),
        ("1", True),
        ("2", True),
    ]


def test_numbered_names_are_merged_with_their_prefix():
    model = nn.Sequential()
    for number in (9, 10, 11):
        model.add_module(f"layer_{number}", Block())
    (row,) = find_rows(profile_of(model, 4)).children
    assert (row.name, row.repeats) == ("layer_9-11", 3)


def test_dropout_stands_in_the_tree_though_inference_does_not_run_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    tree = find_rows(profile_of(model, 4))
    dropout = child(tree, "1")
    assert dropout.total.saved_bytes > 0
    assert (dropout.total.macs, dropout.output_shape) == (0, ())


def test_a_row_that_is_shared_has_the_class_of_the_block_and_not_of_its_container():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = nn.ModuleDict({"one": Plain(), "list": nn.Sequential(Plain(), Plain())})

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["list"](self.parts["one"](x))

    (parts,) = find_rows(profile_of(Both(), 4)).children
    assert [(row.name, type_text(row)) for row in parts.children] == [
        ("one.inner", "Plain"),
        ("list.0-1.inner", "2 x Plain"),
    ]


def test_the_output_of_a_model_is_that_of_its_last_layer_and_not_of_its_own_reshape():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.flatten(self.conv(x) + 1, 1))

    assert find_rows(profile_of(Flat(), 1, 6, 6)).output_shape == (1, 5)


def test_times_add_up_with_the_share_that_memory_limits(timed):
    blocks = child(find_rows(timed), "body.blocks.0-2")
    assert blocks.total.predicted_ms == pytest.approx(3 * 48)
    assert blocks.total.memory_bound_pct == pytest.approx(100 * 16 / 48)
    assert find_rows(timed).total.predicted_ms == pytest.approx(184)


def test_depth_is_as_large_as_the_rows_allow(small):
    tree = find_rows(small, merge=False)
    assert [sum(1 for _ in tree.visible(d)) for d in (1, 2, 3)] == [4, 7, 13]
    assert [fitting_depth(tree, rows) for rows in (1, 6, 7, 12, 13, 99)] == [1, 1, 2, 2, 3, 3]
