"""A config is often somebody else's file: it may not run what is neither listed nor trusted."""

import pytest

COPY = "src: {here}, dst: {canary}"
FACTORY = f"{{(): shutil.copy, {COPY}}}"
TARGET = f"{{_target_: shutil.copy, {COPY}}}"

CONFIGS = {
    "escaped": f"model: {{pretrained: '\\${{oc.create:{TARGET}}}'}}",
    "job_logging": f"hydra: {{job_logging: {{handlers: {{x: {FACTORY}}}}}}}",
    "hydra_logging": f"hydra: {{hydra_logging: {{handlers: {{x: {FACTORY}}}}}}}",
    "logging_class": f"hydra: {{job_logging: {{handlers: {{x: {{class: shutil.copy, {COPY}}}}}}}}}",
    "nested_callback": (
        "hydra: {callbacks: {x: {_target_: hydra.experimental.callbacks.LogJobReturnCallback,"
        f" y: {TARGET}}}}}}}"
    ),
    "alias": (
        "hydra: {callbacks: {x: {_target_: hydra.test_utils.test_utils.shutil.copy,"
        f" {COPY}}}}}}}"
    ),
    "sweeper": "hydra: {sweeper: {_target_: shutil.copy}}",
    "own_trust": (
        "hydra: {job: {env_set: {EFFTRAIN_TRUST: shutil}}}\n"
        f"task: {{metrics: {{acc: {{foo: {TARGET}}}}}}}"
    ),
    "swallowed": f"task: {{metrics: {{acc: {{foo: {TARGET}}}}}}}",
}
"""YAML; {here} and {canary} are filled in with a file to copy and where it must not turn up."""


@pytest.fixture
def hostile(verb, tmp_path):
    """Run `efftrain train` on one of the configs; returns exit code and standard error."""

    def run(name: str, *flags: str) -> tuple[int, str]:
        canary = tmp_path / "canary"
        folder = tmp_path / "mine" / "experiment"
        folder.mkdir(parents=True)
        text = CONFIGS[name].replace("{here}", __file__).replace("{canary}", str(canary))
        (folder / "x.yaml").write_text(f"# @package _global_\n{text}\n")
        own = str(tmp_path / "mine")
        code, _, err = verb("train", "--config-dir", own, "experiment=x", "debug=fast", *flags)
        assert not canary.exists()
        return code, err

    return run


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_runs_nothing(hostile, name):
    code, err = hostile(name)
    assert code == 2
    assert "Traceback" not in err
    assert any(words in err for words in ("may not", "is left after all values"))


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]], ids=" ".join)
def test_not_even_to_show_itself(hostile, flags):
    assert hostile("hydra_logging", *flags)[0] == 2
