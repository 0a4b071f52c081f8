import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from efftrain.data.first_batch import check_labels, explain_loss, explain_refusal
from efftrain.errors import DataError, NumericError
from efftrain.peft import apply, select
from efftrain.task import Task


def make_task(channels: int = 3, loss: nn.Module | None = None) -> Task:
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)
    )
    selection = select(model, "norm")
    apply(model, selection)
    return Task(model, selection, loss or nn.CrossEntropyLoss(), {})


def run(task: Task, images: torch.Tensor, labels: torch.Tensor) -> None:
    task._evaluate((images, labels), task.val_metrics, task.val_loss)


def test_another_number_of_channels_is_one_line_with_both():
    with pytest.raises(DataError) as caught:
        run(make_task(), torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long))
    line = str(caught.value)
    assert line.startswith(
        "data: Sequential refuses a batch of [2, 1, 4, 4]; it takes 3 channels "
        "(data.channels, data.image_size): "
    )
    assert "to have 3 channels, but got 1 channels" in line
    assert len(line.splitlines()) == 1


def test_a_model_that_has_run_once_fails_in_its_own_words():
    task = make_task()
    run(task, torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(RuntimeError, match="to have 3 channels") as caught:
        run(task, torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long))
    assert not isinstance(caught.value, DataError)


def test_a_label_without_a_score_is_one_line_with_what_to_set():
    with pytest.raises(DataError) as caught:
        run(make_task(), torch.zeros(2, 3, 4, 4), torch.tensor([0, 6]))
    assert str(caught.value) == (
        "data: a label is 6, the model gives 5 scores, for 0 to 4; set model.num_classes=7 or more"
    )
    with pytest.raises(DataError, match="a label is -1; class numbers begin at 0"):
        run(make_task(), torch.zeros(2, 3, 4, 4), torch.tensor([0, -1]))


def test_a_later_wrong_label_is_one_line_too():
    task = make_task()
    run(task, torch.zeros(2, 3, 4, 4), torch.tensor([0, 4]))
    with pytest.raises(DataError, match="CrossEntropyLoss refuses scores of shape"):
        run(task, torch.zeros(2, 3, 4, 4), torch.tensor([0, 5]))


def test_labels_of_another_shape_than_the_scores_are_one_line():
    with pytest.raises(DataError, match=r"scores of shape \[2, 5\] with labels of shape \[3\]"):
        run(make_task(), torch.zeros(2, 3, 4, 4), torch.tensor([0, 1, 2]))


def test_what_is_no_class_number_is_not_looked_at():
    scores = torch.zeros(2, 3)
    check_labels(scores, torch.tensor([2, 0]), ignored=-100)
    check_labels(scores, torch.tensor([-100, -100]), ignored=-100)
    check_labels(scores, torch.full((2, 3), 7.0), ignored=-100)  # probabilities, or a regression
    check_labels(scores, torch.full((2, 3), 7), ignored=-100)  # several labels each
    check_labels(torch.zeros(2, 3, 4), torch.full((2, 4), 2), ignored=-100)
    with pytest.raises(DataError, match="a label is 3"):
        check_labels(torch.zeros(2, 3, 4), torch.full((2, 4), 3), ignored=-100)


def test_tokens_for_a_text_model_are_described_by_name():
    config = BertConfig(
        vocab_size=20, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=4, max_position_embeddings=6,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    inputs = {"input_ids": torch.full((2, 6), 25), "attention_mask": torch.ones(2, 6)}
    error = explain_refusal(model, inputs, IndexError("index out of range in self"))
    assert str(error) == (
        "data: BertForSequenceClassification refuses a batch of input_ids [2, 6], attention_mask "
        "[2, 6]; it takes token ids below 20, up to 6 tokens: index out of range in self"
    )


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), NotImplementedError("no"), NumericError("nan")]
)
def test_what_the_data_cannot_be_blamed_for_stays_as_it_is(error):
    assert explain_refusal(nn.ReLU(), torch.zeros(1), error) is error
    assert explain_loss(nn.L1Loss(), torch.zeros(1), torch.zeros(1), error) is error
