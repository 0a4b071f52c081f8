import json
import logging

import pytest

from efftrain.data.text_files import TextFilesData
from efftrain.data.text_lines import TextLinesData
from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface

BYTE_MODEL = ModelInterface(num_classes=2, vocab_size=300, max_length=64)


def read(data, interface=BYTE_MODEL):
    data.adapt_to(interface)
    data.setup()
    return [list(loader.dataset) for loader in (data.train_dataloader(), data.val_dataloader())]


def tokens(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_words_are_numbered_in_alphabetical_order_and_which_is_which_is_said(write, caplog):
    caplog.set_level(logging.INFO)
    train = write("a.csv", 'text,label\n"so, so",good\nbad,bad\n"two\nlines",good\n')
    val = write("b.tsv", "label\ttext\nbad\tno\n")
    rows, others = read(TextFilesData(train, val))
    assert rows == [(tokens("so, so"), 1), (tokens("bad"), 0), (tokens("two\nlines"), 1)]
    assert others == [(tokens("no"), 0)]
    assert [record.getMessage() for record in caplog.records] == ["labels: 0 bad, 1 good"]


def test_numbers_stay_what_they_are_and_columns_can_be_named(write):
    records = [{"review": "x", "stars": 1}, {"review": "y", "stars": 0}]
    path = write("a.jsonl", "\n".join(map(json.dumps, records)) + "\n\n")
    rows, _ = read(TextFilesData(path, path, text="review", label="stars"))
    assert rows == [(tokens("x"), 1), (tokens("y"), 0)]


def test_a_share_is_held_out_and_a_long_text_is_cut(write):
    path = write("a.csv", "text,label\n" + "abcdef,1\nghijkl,0\n" * 5)
    train, held_out = read(TextFilesData(path, held_out=0.3, length=4))
    assert (len(train), len(held_out)) == (7, 3)
    assert {len(ids) for ids, _ in train + held_out} == {4}
    short = ModelInterface(num_classes=2, vocab_size=300, max_length=3)
    assert {len(ids) for ids, _ in read(TextFilesData(path), short)[0]} == {3}


def test_batches_are_padded_to_their_longest(write):
    data = TextFilesData(
        write("a.csv", "text,label\na,0\nabc,1\n"), write("b.csv", "text,label\na,0\nabc,1\n")
    )
    read(data)
    batch = next(iter(data.val_dataloader()))
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "txt,label\nx,1\n", "a.csv:2 has no 'text'; it has txt, label; name the columns"),
        ("a.csv", "text,label\nx,1\ny\n", "a.csv:3 has no 'label'"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "text,label\nx,1\n", "has one row"),
        ("a.jsonl", '{"text": "x", "label": 1}\nnot json\n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1 is no object"),
        ("a.txt", "x", "none of .csv, .tsv, .jsonl"),
        ("a.csv", "text,label\nx,0\ny,7\n", "has 8 classes, the model gives 2 scores; set model.num_"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(write, name, text, message):
    with pytest.raises(DataError, match=r"^data") as caught:
        read(TextFilesData(write(name, text)))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path, write):
    with pytest.raises(DataError, match=r"data\.train: no file nowhere\.csv"):
        read(TextFilesData("nowhere.csv"))
    (tmp_path / "binary.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read(TextFilesData(str(tmp_path / "binary.csv")))
    train = write("a.csv", "text,label\nx,yes\ny,no\n")
    with pytest.raises(DataError, match=r"b\.csv:2 has the label 'maybe', which .* never has"):
        read(TextFilesData(train, write("b.csv", "text,label\nx,maybe\n")))


def test_lines_are_joined_and_cut_into_blocks(write):
    path = write("a.txt", "abc\n\nde\nfghij\n")
    end = 257
    stream = [*tokens("abc"), end, *tokens("de"), end, *tokens("fghij"), end]
    assert len(stream) == 13
    train, held_out = read(TextLinesData(path, length=4, held_out=0.3))
    assert train == [stream[0:4], stream[4:8]]
    assert held_out == [stream[8:12]], "the last token fills no block"
    train, val = read(TextLinesData(path, val=path, length=6))
    assert train == val == [stream[0:6], stream[6:12]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab", "has 3 tokens, fewer than a block of 4"),
        ("abcd", "fills one block of 4 tokens, and there is none to evaluate on"),
    ],
)
def test_too_little_text_is_one_line(write, text, message):
    with pytest.raises(DataError, match=message):
        read(TextLinesData(write("a.txt", text), length=4))


def test_missing_or_binary_lines_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.train: no file nowhere\.txt"):
        read(TextLinesData("nowhere.txt"))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read(TextLinesData(str(tmp_path / "a.txt")))
