"""The two data sets of drawn letters: a label for each sequence, and sequences to be continued."""

import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch

from efftrain.data.alphabet import alphabet
from efftrain.data.marked_tokens import MarkedTokensData
from efftrain.data.token_chain import TokenChainData
from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface

TEXT_MODEL = ModelInterface(num_classes=3, vocab_size=1000, max_length=512)


def draw(data, interface=TEXT_MODEL) -> tuple[list, list]:
    data.adapt_to(interface)
    data.setup()
    return [list(loader.dataset) for loader in (data.train_dataloader(), data.val_dataloader())]


def test_letters_are_spread_over_the_vocabulary_behind_the_reserved_ids():
    assert alphabet(100, 5).tolist() == [4, 27, 51, 75, 99]
    assert alphabet(9, 5).tolist() == [4, 5, 6, 7, 8]
    with pytest.raises(DataError, match=r"vocabulary of 8; lower data\.letters"):
        alphabet(8, 5)


def test_labelled_sequences_are_balanced_fixed_and_in_the_models_ids():
    torch.manual_seed(1)
    train, held_out = draw(MarkedTokensData(samples=120, length=7, letters=12))
    torch.manual_seed(2)
    assert draw(MarkedTokensData(samples=120, length=7, letters=12)) == [train, held_out]
    assert (len(train), len(held_out)) == (90, 30)
    assert Counter(label for _, label in train + held_out) == {0: 40, 1: 40, 2: 40}
    ids = {token for sequence, _ in train for token in sequence}
    assert ids <= set(alphabet(1000, 12).tolist())
    assert {len(sequence) for sequence, _ in train} == {7}


def test_the_labels_own_letters_have_the_share_that_is_documented():
    train, held_out = draw(MarkedTokensData(samples=1500, length=64, letters=10, signal=0.4))
    letter = {token: index for index, token in enumerate(alphabet(1000, 10).tolist())}
    own, total, right = 0, 0, 0
    for sequence, label in train + held_out:
        shares = Counter(letter[token] % 3 for token in sequence)
        own += shares[label]
        total += len(sequence)
        # 10 letters are dealt out 4, 3, 3, so that counts are compared with what chance gives
        right += label == max(range(3), key=lambda k: shares[k] - 0.6 * 64 * (4, 3, 3)[k] / 10)
    expected = 0.4 + 0.6 * (4 / 10 + 3 / 10 + 3 / 10) / 3
    assert own / total == pytest.approx(expected, abs=4 * math.sqrt(0.25 / total))
    assert right / len(train + held_out) > 0.95, "counting letters solves it"


def test_without_a_signal_there_is_nothing_to_learn():
    train, held_out = draw(MarkedTokensData(samples=600, length=64, letters=9, signal=0.0))
    letter = {token: index for index, token in enumerate(alphabet(1000, 9).tolist())}
    own = [letter[token] % 3 == label for sequence, label in train + held_out for token in sequence]
    assert sum(own) / len(own) == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / len(own)))


def test_a_labelled_batch_is_what_a_text_classifier_takes():
    data = MarkedTokensData(samples=16, length=5, letters=8, batch_size=4)
    draw(data)
    batch = next(iter(data.val_dataloader()))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (4, 5), "attention_mask": (4, 5), "labels": (4,),
    }  # fmt: skip
    assert batch["attention_mask"].all()


def test_each_letter_of_a_chain_has_its_successors_all_as_likely():
    train, held_out = draw(TokenChainData(samples=800, length=32, letters=16, branches=4))
    followers: dict[int, Counter] = defaultdict(Counter)
    for sequence in train + held_out:
        for here, there in itertools.pairwise(sequence):
            followers[here][there] += 1
    assert len(followers) == 16
    assert {len(counts) for counts in followers.values()} == {4}
    total = sum(sum(counts.values()) for counts in followers.values())
    assert total == 800 * 31
    nats = -sum(
        n / total * math.log(n / sum(counts.values()))
        for counts in followers.values()
        for n in counts.values()
    )
    assert math.exp(nats) == pytest.approx(4, rel=0.01), (
        "the best perplexity is that of the branches"
    )


def test_a_chain_is_fixed_and_its_labels_are_its_tokens():
    data = TokenChainData(samples=16, length=6, letters=8, batch_size=3)
    assert draw(data) == draw(TokenChainData(samples=16, length=6, letters=8))
    batch = next(iter(data.val_dataloader()))
    assert batch["input_ids"].shape == (3, 6)
    assert torch.equal(batch["labels"], batch["input_ids"])


@pytest.mark.parametrize("data", [MarkedTokensData, TokenChainData])
def test_a_sequence_is_no_longer_than_the_model_takes(data):
    short = ModelInterface(num_classes=2, vocab_size=100, max_length=5)
    (first, *_), _ = draw(data(samples=8, letters=8), short)
    sequence = first[0] if data is MarkedTokensData else first
    assert len(sequence) == 5


@pytest.mark.parametrize("data", [MarkedTokensData, TokenChainData])
def test_a_model_of_images_is_refused(data):
    with pytest.raises(DataError, match="gives tokens, the model takes 3 channels, 8 x 8 pixels"):
        data().adapt_to(ModelInterface(channels=3, image_size=(8, 8)))


def test_more_classes_than_letters_are_refused():
    with pytest.raises(DataError, match=r"data\.classes: 9 classes do not fit 8 letters"):
        draw(MarkedTokensData(letters=8, classes=9))
    with pytest.raises(
        DataError, match=r"data\.branches: must be from 1 to data\.letters=8, got 9"
    ):
        TokenChainData(letters=8, branches=9)
