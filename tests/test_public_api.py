import subprocess
import sys

import pytest

import efftrain


@pytest.mark.parametrize("name", efftrain.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(efftrain, name).__doc__


def test_importing_the_package_imports_no_torch():
    code = "import sys, efftrain; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = efftrain.nonsense
