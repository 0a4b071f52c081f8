import json

from safetensors.torch import load_file


def test_two_processes_write_one_run(command):
    result = command(
        "train", "debug=fast", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2",
        "hydra.run.dir=run",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trainable params: 14,080") == 1
    assert result.stdout.count("tensorboard --logdir") == 1
    run = command.folder / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["params"]["trainable"] == 14_080
    assert len(load_file(run / "delta.safetensors")) == 104


def test_a_sweep_does_not_start_processes_that_would_each_sweep_again(verb):
    code, _, err = verb(
        "train", "-m", "debug=fast", "trainer.accelerator=cpu", "trainer.devices=2", "seed=0,1"
    )  # fmt: skip
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("efftrain: trainer.devices: a sweep cannot start several processes")
