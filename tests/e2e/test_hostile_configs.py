"""A config is often somebody else's file: it may not run what is neither listed nor trusted."""

import pytest

LOGGING = "hydra: {{%s: {{handlers: {{x: {{(): shutil.copy, src: {here}, dst: {canary}}}}}}}}}"

CONFIGS = {
    "escaped": "model: {{pretrained: '\\${{oc.create:{{_target_: shutil.copy, src: {here}, dst: {canary}}}}}'}}",
    "job_logging": LOGGING % "job_logging",
    "hydra_logging": LOGGING % "hydra_logging",
    "logging_class": "hydra: {{job_logging: {{handlers: {{x: {{class: shutil.copy, src: {here}, dst: {canary}}}}}}}}}",
    "nested_callback": (
        "hydra: {{callbacks: {{x: {{_target_: hydra.experimental.callbacks.LogJobReturnCallback,"
        " y: {{_target_: shutil.copy, src: {here}, dst: {canary}}}}}}}}}"
    ),
    "alias": (
        "hydra: {{callbacks: {{x: {{_target_: hydra.test_utils.test_utils.shutil.copy,"
        " src: {here}, dst: {canary}}}}}}}"
    ),
    "sweeper": "hydra: {{sweeper: {{_target_: shutil.copy, src: {here}, dst: {canary}}}}}",
    "own_trust": (
        "hydra: {{job: {{env_set: {{EFFTRAIN_TRUST: shutil}}}}}}\n"
        "task: {{metrics: {{acc: {{foo: {{_target_: shutil.copy, src: {here}, dst: {canary}}}}}}}}}"
    ),
    "swallowed": (
        "task: {{metrics: {{acc: {{foo: {{_target_: shutil.copy, src: {here}, dst: {canary}}}}}}}}}"
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("flags", [[], ["--help"], ["--cfg", "job"]], ids=["run", "help", "cfg"])
def test_a_hostile_config_runs_nothing(verb, tmp_path, name, flags):
    canary = tmp_path / "canary"
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = CONFIGS[name].format(here=__file__, canary=canary)
    (folder / "x.yaml").write_text(f"# @package _global_\n{text}\n")
    code, _, err = verb(
        "train", "--config-dir", str(tmp_path / "mine"), "experiment=x", "debug=fast", *flags
    )
    assert not canary.exists()
    if not flags:
        assert code == 2
        assert "Traceback" not in err


def test_shipped_launchers_and_handlers_pass(verb):
    assert verb("train", "--cfg", "hydra")[0] == 0
