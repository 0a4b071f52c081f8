import logging

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging

from efftrain.models.chatter import quiet, quiet_transformers


def test_loggers_get_their_level_back_even_after_an_error():
    logger = logging.getLogger("some.library")
    logger.setLevel(logging.INFO)
    with quiet("some.library"):
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == logging.INFO
    with pytest.raises(KeyError), quiet("some.library"):
        raise KeyError
    assert logger.level == logging.INFO


def test_transformers_is_as_before_afterwards():
    with quiet_transformers():
        assert not transformers_logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled(), "the tests run without a terminal"
        assert not logging.getLogger("transformers").isEnabledFor(logging.WARNING)
    assert transformers_logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()
    assert logging.getLogger("transformers").isEnabledFor(logging.WARNING)
