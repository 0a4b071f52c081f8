import time

import lightning.pytorch as pl
import pytest

from efftrain.callbacks.self_timed import SelfTimed, timed, total_cost_s
from tests.callbacks.conftest import SleepyModule, loader


class Naps(SelfTimed):
    @timed
    def on_after_backward(self, *_):
        time.sleep(0.02)

    @timed
    def on_train_end(self, *_):
        raise ZeroDivisionError


def test_a_hook_adds_up_its_time_even_where_it_fails(train):
    naps = Naps()
    with pytest.raises(ZeroDivisionError):
        train(naps, SleepyModule(), loader(12, 4))
    assert 0.06 <= naps.cost_s < 0.3
    assert total_cost_s([naps, pl.Callback(), SelfTimed(), naps]) == 2 * naps.cost_s


def test_each_callback_counts_for_itself():
    one, other = Naps(), Naps()
    one.on_after_backward()
    assert one.cost_s > 0
    assert other.cost_s == 0


def test_hooks_of_a_step_that_nobody_defined_are_not_called():
    assert Naps.on_before_backward is None
    assert Naps.on_train_batch_end is None
    assert Naps.on_after_backward is not None
    assert Naps.on_train_epoch_end is pl.Callback.on_train_epoch_end, "hardly costs anything"


class Grandchild(Naps):
    def on_before_backward(self, *_):
        self.called = True

    def on_train_end(self, *_):
        pass


def test_a_subclass_may_define_what_its_parent_had_not(train):
    callback = Grandchild()
    train(callback, SleepyModule(), loader(4, 4))
    assert callback.called
    assert callback.cost_s >= 0.02, "its parent's hooks are still its own"
