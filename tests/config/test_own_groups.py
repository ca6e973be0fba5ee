"""`--config-dir`: options and groups of the user's own, found by every command as Hydra finds them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.cli.main import dispatch
from harness.config.compose import (
    CONFIG_DIR_VARIABLE,
    compose_run,
    composed_by_hydra,
    group_options,
    prepare_overrides,
)
from harness.errors import RequestError
from harness.launch.submit import member_command
from harness.question.check_space import check_space
from harness.question.load import load_question

FILES = {
    "quant/nf4_128.yaml": "format: nf4\nblock_size: 128\n",
    "recipe/guanaco.yaml": """\
# @package _global_
defaults:
  - override /lora: attention
lora: {rank: 64, alpha: 16, alpha_over_rank: null}
optim: {lr: 2e-4, schedule: constant}
""",
    "recipe/small.yaml": "# @package _global_\nlora: {rank: 2}\n",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of own groups, whose name needs quotes in Hydra's grammar, in the environment."""
    directory = tmp_path / "it's mine, really"
    for name, text in FILES.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, str(directory))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return directory


def test_an_option_of_ones_own_stands_beside_those_that_come_with_the_harness(own):
    config = compose_run(["quant=nf4_128"])
    assert (config.quant.format.value, config.quant.block_size) == ("nf4", 128)
    assert compose_run(["quant=nf4"]).quant.block_size == 64
    assert {"nf4", "nf4_128"} <= set(group_options()["quant"])


def test_a_group_of_ones_own_sets_keys_of_any_section_and_chooses_other_options(own):
    config = compose_run(["recipe=guanaco"])
    assert (config.lora.rank, config.lora.alpha, config.lora.alpha_over_rank) == (64, 16.0, None)
    assert config.lora.target_modules == ["attention"]
    assert (config.optim.lr, config.optim.schedule.value) == (2e-4, "constant")
    assert config == compose_run(["+recipe=guanaco"])  # as Hydra spells it
    assert compose_run(["recipe=guanaco", "lora.rank=8"]).lora.rank == 8


def test_options_of_ones_own_and_values_give_what_hydra_makes_of_them(own):
    overrides = ["optim.steps=7", "recipe=guanaco", "quant=nf4_128", "lora.rank=4"]
    assert compose_run(overrides) == composed_by_hydra(prepare_overrides(overrides))


def test_own_options_and_groups_are_axes_of_a_question(own, tmp_path):
    file = tmp_path / "blocks.yaml"
    asked = {
        "question": "Do larger blocks cost quality?",
        "base": ["data=rule"],
        "space": {"quant": "choice(nf4, nf4_128)", "recipe": "choice(guanaco, small)"},
        "search": {"method": "grid"},
        "objective": "eval/loss",
    }
    file.write_text(yaml.safe_dump(asked))
    points = check_space(load_question(str(file), []))
    found = {(config.quant.block_size, config.lora.rank) for _, config in points}
    assert found == {(64, 64), (64, 2), (128, 64), (128, 2)}


def test_jobs_that_join_a_sweep_are_told_where_the_groups_are(own, tmp_path):
    command = member_command(load_question("demo", []), tmp_path)
    assert command[command.index("--config-dir") + 1] == str(own)


@pytest.mark.parametrize("spelling", [["--config-dir", "{}"], ["--config-dir={}"], ["-cd", "{}"]])
def test_the_option_says_where_they_are(spelling, own, monkeypatch, capsys):
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, "")
    words = [word.format(own) for word in spelling]
    assert dispatch(["run", *words, "--help", "quant=nf4_128"]) == 0
    shown = capsys.readouterr().out
    assert "nf4_128" in shown
    assert "guanaco, small" in shown
    assert "quant.block_size=128" in shown


def test_cfg_job_shows_what_an_own_group_makes_of_the_configuration(own):
    command = [sys.executable, "-m", "harness", "run", "--config-dir", str(own)]
    done = subprocess.run(
        [*command, "--cfg", "job", "recipe=small"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["lora"]["rank"] == 2


@pytest.mark.parametrize(
    ("files", "override", "words"),
    [
        ({}, "quant=nf4", ["holds no group", "GROUP/OPTION.yaml"]),
        ({"quant/nf4.yaml": "format: fp4\n"}, "seed=1", ["would be ignored", "another name"]),
        ({"quant/mine.yaml": "format: [nf4\n"}, "quant=mine", ["cannot be read as YAML", "mine"]),
        ({"quant/mine.yaml": "formt: nf4\n"}, "quant=mine", ["formt", "QuantConfig"]),
        ({"quant/mine.yaml": "_target_: os.system\n"}, "quant=mine", ["_target_"]),
        ({"quant/mine.yaml": "format: nf4\n"}, "quant=min", ["quant=min", "near names: mine"]),
        ({"recipe/a.yaml": "x: 1\n"}, "recipe=a", ["recipe", "RunConfig"]),
    ],
    ids=["empty", "taken", "torn", "typo", "target", "near", "no-package"],
)
def test_what_would_not_work_is_refused(files, override, words, tmp_path, monkeypatch):
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(RequestError) as refused:
        compose_run([override])
    message = str(refused.value)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config-dir", "/nowhere/at/all", "--help"], "/nowhere/at/all is no directory"),
        (["--config-dir"], "needs a directory"),
        (["hydra.searchpath=[file:///nowhere]", "--cfg", "job"], "--config-dir DIRECTORY"),
    ],
    ids=["nowhere", "nothing", "hydras"],
)
def test_what_names_no_directory_is_refused_and_so_is_hydras_own_spelling(words, said, capsys):
    assert dispatch(["run", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _environment_as_it_was(monkeypatch):
    """The option puts the directory into the environment of the process; take it out again."""
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, "")
