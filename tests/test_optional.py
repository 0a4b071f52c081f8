import pytest

from efftrain.errors import MachineError
from efftrain.optional import require


def test_a_package_that_is_there_is_imported():
    assert require("json", extra="none").dumps([1]) == "[1]"


def test_a_missing_package_names_the_pip_line():
    with pytest.raises(MachineError, match=r"pip install 'efftrain\[ray\]'") as caught:
        require("no_such_package", extra="ray")
    assert caught.value.exit_code == 6


def test_a_package_that_fails_inside_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        require("broken_inside", extra="x")
