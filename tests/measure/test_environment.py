import json
import platform

import torch

from efftrain.measure.environment import describe_environment


def test_versions_and_hardware_are_plain_values():
    env = json.loads(json.dumps(describe_environment()))
    assert env["python"] == platform.python_version()
    assert env["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert env["cpu_threads"] == torch.get_num_threads()
    assert env["cpu_count"] >= 1
    assert len(env["gpus"]) == torch.cuda.device_count()
    assert "no-such-package" not in env["packages"]
