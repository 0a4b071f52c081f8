import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from efftrain.schedules import constant, cosine

STEPS = 20


def rates(make, groups=(1.0,)):
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in groups]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    schedule = make(optimizer)
    seen = []
    for _ in range(STEPS):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen


def test_cosine_without_warmup_is_that_of_transformers():
    ours = rates(lambda optimizer: cosine(optimizer, STEPS, warmup=0.0))
    theirs = rates(lambda optimizer: get_cosine_schedule_with_warmup(optimizer, 0, STEPS))
    assert sum(ours, []) == pytest.approx(sum(theirs, []))  # noqa: RUF017


def test_cosine_rises_to_the_rate_and_falls_to_the_floor():
    seen = [rate for (rate,) in rates(lambda o: cosine(o, STEPS, warmup=0.2, floor=0.1))]
    assert seen[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert seen[4] == pytest.approx(1.0)
    assert seen[12] == pytest.approx(0.55), "half way down, half way between 1 and the floor"
    assert seen == sorted(seen[:5]) + sorted(seen[5:], reverse=True)


def test_groups_keep_their_ratio():
    for norm, head in rates(lambda o: cosine(o, STEPS, warmup=0.2), groups=(1.0, 0.1)):
        assert head == pytest.approx(0.1 * norm)


def test_constant_stays_once_it_is_up():
    seen = [rate for (rate,) in rates(lambda o: constant(o, STEPS, warmup=0.1))]
    assert seen == pytest.approx([0.5] + [1.0] * (STEPS - 1))
