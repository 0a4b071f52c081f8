import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from efftrain.causal_lm import CausalLMTask, Perplexity
from efftrain.errors import DataError
from efftrain.peft import apply, select


@pytest.fixture
def task() -> CausalLMTask:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    selection = select(model, "norm")
    apply(model, selection)
    return CausalLMTask(model, selection, nn.CrossEntropyLoss(), {"perplexity": Perplexity()})


def batches() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(11, (2, 3, 7), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, 1, 3:] = -100  # padding
    labels[1, :, :2] = -100  # a prompt
    mask = torch.ones_like(ids)
    return [
        {"input_ids": i, "attention_mask": m, "labels": one}
        for i, m, one in zip(ids, mask, labels, strict=True)
    ]


def test_the_loss_is_the_one_that_transformers_computes_itself(task):
    for batch in batches():
        loss = task._evaluate(batch, task.val_metrics, task.val_loss)
        assert loss.item() == pytest.approx(task.model(**batch).loss.item(), rel=1e-6)


def test_loss_and_perplexity_of_an_epoch_are_means_over_tokens(task):
    nats, tokens = 0.0, 0
    for batch in batches():
        task._evaluate(batch, task.val_metrics, task.val_loss)
        scores = task.model(batch["input_ids"]).logits.log_softmax(-1)
        for row in range(3):
            for here in range(6):
                label = int(batch["labels"][row, here + 1])
                if label != -100:
                    nats -= scores[row, here, label].item()
                    tokens += 1
    assert tokens == (18 - 4) + (18 - 3)
    assert task.val_loss.compute().item() == pytest.approx(nats / tokens, rel=1e-5)
    perplexity = task.val_metrics.compute()["val/perplexity"].item()
    assert perplexity == pytest.approx(2.718281828 ** (nats / tokens), rel=1e-5)


def test_perplexity_of_even_and_of_certain_scores():
    labels = torch.tensor([0, 3, -100, 2])
    metric = Perplexity()
    metric.update(torch.zeros(4, 5), labels)
    assert metric.compute().item() == pytest.approx(5)
    metric.reset()
    certain = torch.full((4, 5), -1e4)
    certain[torch.arange(4), labels.clamp(min=0)] = 0
    metric.update(certain, labels)
    assert metric.compute().item() == pytest.approx(1)


def test_a_hopeless_score_in_half_precision_is_not_infinite():
    metric = Perplexity()
    scores = torch.tensor([[0.0, -160.0], [0.0, 0.0]], dtype=torch.bfloat16)
    metric.update(scores, torch.tensor([1, 0]))
    # (160 + ln 2) / 2 nats a token; e to the power of -160 is 0 in single precision
    assert metric.compute().log().item() == pytest.approx(80.3466, rel=1e-4)


@pytest.mark.parametrize(
    ("scores", "labels"), [((2, 5, 11), (2,)), ((2, 5, 11), (2, 4)), ((2, 11), (2, 5))]
)
def test_labels_that_are_not_one_a_position_are_one_line(task, scores, labels):
    with pytest.raises(DataError, match="do not fit scores of shape") as caught:
        task.align(torch.zeros(scores), torch.zeros(labels, dtype=torch.long))
    assert len(str(caught.value).splitlines()) == 1
