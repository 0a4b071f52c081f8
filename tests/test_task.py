import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from transformers.modeling_outputs import ImageClassifierOutput

from efftrain.errors import DataError
from efftrain.peft import apply, select
from efftrain.schedules import cosine
from efftrain.task import MeanLoss, Task, scores_of, split_batch


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


def make_task(model: nn.Module, method: str = "norm", bn_stats: str = "running", **kwargs) -> Task:
    selection = select(model, method)
    apply(model, selection, bn_stats=bn_stats)

    def optimizer(groups):
        return torch.optim.AdamW(groups, **{"lr": 0.1, **kwargs})

    optimizer.keywords = {"lr": 0.1, **kwargs}
    return Task(
        model,
        selection,
        nn.CrossEntropyLoss(),
        {"acc": MulticlassAccuracy(3, average="micro")},
        optimizer,
        cosine,
    )


def loader(count: int = 12, batch_size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 8, 8, generator=generator) + 3
    return DataLoader(TensorDataset(images, torch.arange(count) % 3), batch_size)


def fit(task: Task, epochs: int = 2) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, loader(), loader())
    return trainer


def test_only_what_the_selection_names_reaches_the_optimizer():
    task = make_task(conv_net())
    trainer = fit(task)
    held = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(task.model[1].weight), id(task.model[1].bias)}


def test_norms_and_biases_have_no_weight_decay_and_matrices_do():
    task = make_task(conv_net(), method="norm+head", weight_decay=0.3)
    trainer = fit(task)
    decay = {
        id(p): group["weight_decay"]
        for group in trainer.optimizers[0].param_groups
        for p in group["params"]
    }
    norm, head = task.model[1], task.model[4]
    assert [decay[id(p)] for p in (norm.weight, norm.bias, head.bias)] == [0, 0, 0]
    assert decay[id(head.weight)] == 0.3


def test_frozen_weights_and_running_statistics_stay_bit_for_bit():
    model = conv_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(make_task(model))
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"1.weight", "1.bias"}


def test_running_statistics_are_used_in_every_epoch_and_after_train():
    model = conv_net()
    task = make_task(model)
    fit(task)
    task.train()
    assert model[1].training is False
    assert model[0].training is True


def test_statistics_move_where_the_policy_says_so():
    model = conv_net()
    fit(make_task(model, bn_stats="update"))
    assert model[1].num_batches_tracked == 2 * 3
    assert not torch.equal(model[1].running_mean, torch.zeros(4))


def test_metrics_are_those_of_a_plain_loop():
    model = conv_net()
    task = make_task(model)
    trainer = fit(task)
    model.eval()
    images, labels = loader().dataset.tensors
    with torch.no_grad():
        scores = model(images)
    expected = (scores.argmax(1) == labels).float().mean()
    assert trainer.callback_metrics["val/acc"] == pytest.approx(expected.item())
    loss = nn.functional.cross_entropy(scores, labels)
    assert trainer.callback_metrics["val/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_schedule_ends_with_the_run():
    trainer = fit(make_task(conv_net()), epochs=3)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.0] * len(rates), abs=1e-9)


def test_a_batch_is_a_pair_or_holds_labels():
    x, y = torch.zeros(2, 3), torch.zeros(2)
    assert split_batch((x, y)) == (x, y)
    assert split_batch([x, y]) == (x, y)
    inputs, labels = split_batch({"input_ids": x, "labels": y})
    assert list(inputs) == ["input_ids"]
    assert labels is y
    with pytest.raises(DataError, match="got Tensor"):
        split_batch(x)


def test_scores_are_the_output_or_its_logits():
    logits = torch.ones(2, 3)
    assert scores_of(logits) is logits
    assert scores_of(ImageClassifierOutput(logits=logits)) is logits


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (7, 6)])
def test_a_short_batch_counts_for_as_many_samples_as_it_has(count, batch_size):
    model = conv_net()
    task = make_task(model, lr=0.0)
    model.eval()
    data = loader(count, batch_size)
    for batch in data:
        task._evaluate(batch, task.val_metrics, task.val_loss)
    images, labels = data.dataset.tensors
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(images), labels)
    assert task.val_loss.compute().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_that_is_not_a_number_is_not_averaged_away():
    mean = MeanLoss()
    mean.update(torch.tensor(1.0), 4)
    mean.update(torch.tensor(float("nan")), 4)
    assert torch.isnan(mean.compute())
