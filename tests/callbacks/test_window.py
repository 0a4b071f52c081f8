from types import SimpleNamespace

import pytest

from efftrain.callbacks.window import LoggingWindow, is_logging_step


class Asked(SimpleNamespace):
    """A Trainer that counts how often it is asked for its step."""

    def __init__(self, every, step=0, automatic=True):
        super().__init__(log_every_n_steps=every, step=step, asked=0)
        self.lightning_module = SimpleNamespace(automatic_optimization=automatic)

    @property
    def global_step(self):
        self.asked += 1
        return self.step


def closing_steps(trainer, ends, batches, accumulate=1, per_step=1):
    """After which steps a window closed."""
    window, closed = LoggingWindow(), []
    window.begin(trainer)
    for batch in range(1, batches + 1):
        trainer.step += per_step if batch % accumulate == 0 else 0
        if window.ends(trainer) if ends else window.end_batch(trainer)[1]:
            closed.append(trainer.step)
    return closed


BOTH = pytest.mark.parametrize("ends", [False, True], ids=["end_batch", "ends"])


@BOTH
def test_a_window_closes_at_the_trainers_interval(ends):
    assert closing_steps(Asked(5), ends, 16) == [5, 10, 15]


@BOTH
def test_batches_that_accumulate_close_it_once(ends):
    assert closing_steps(Asked(2), ends, 18, accumulate=3) == [2, 4, 6]


@BOTH
def test_a_resumed_run_closes_it_where_it_would_have_closed(ends):
    assert closing_steps(Asked(50, step=53), ends, 100) == [100, 150]


@BOTH
def test_several_steps_in_a_batch_close_it_where_they_pass_its_end(ends):
    assert closing_steps(Asked(5, automatic=False), ends, 6, per_step=3) == [6, 12, 15]


@BOTH
def test_a_trainer_that_logs_nothing_has_no_windows(ends):
    trainer = Asked(0)
    assert closing_steps(trainer, ends, 5) == []
    assert not is_logging_step(trainer)


def test_who_wants_the_end_only_asks_seldom():
    trainer = Asked(50)
    assert closing_steps(trainer, True, 200) == [50, 100, 150, 200]
    assert trainer.asked == 1 + 1 + 4, "at the beginning, in the first batch, at each end"


def test_a_batch_that_steps_is_told_from_one_that_accumulates():
    trainer, window = Asked(50), LoggingWindow()
    window.begin(trainer)
    assert window.end_batch(trainer) == (False, False)
    trainer.step = 1
    assert window.end_batch(trainer) == (True, False)
    assert window.end_batch(trainer) == (False, False)
