"""The command line as a user types it: answers, refusals, exit codes, completion; nothing is trained here."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent


def harness(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m harness` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=60,
    )


def test_help_lists_the_commands_without_any_library():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harness", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert "harness run" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "hydra", "omegaconf", "rich", "wandb", "numpy"}


def test_help_of_a_run_lists_groups_options_keys_and_their_meaning():
    done = harness("run", "--help", "lora.rank=3", "quant=none")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("nf4_dq", "paged_adamw_32bit", "wandb_offline", "attention_and_mlp_output"):
        assert text in done.stdout
    assert "lora.rank=3\n" in done.stdout
    assert "quant.format=none" in done.stdout
    assert "alpha as a multiple of the rank" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_cfg_job_prints_the_composed_configuration_and_nothing_else():
    done = harness("run", "lora.alpha=7", "--cfg", "job", "tracker=none", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stderr) == (0, "")
    tree = yaml.safe_load(done.stdout)
    assert tree["lora"]["alpha"] == 7
    assert tree["lora"]["alpha_over_rank"] is None
    assert tree["quant"]["compute_dtype"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["usage"]),
        (["rum"], ["'rum'", "run"]),
        (["run", "--jsn"], ["--jsn", "--json"]),
        (["run", "--cfg", "jab"], ["--cfg", "jab", "job"]),
        (["run", "--cfg", "job", "lora.rank=abc"], ["lora.rank=abc"]),
        (["run", "--json", "lora.rnk=1"], ["lora.rnk", "lora.rank"]),
        (["-sc"], ["install=bash"]),
        (["-sc", "install=ksh"], ["install=ksh", "bash"]),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_words_on_stderr_only(arguments, words, capsys):
    from harness.cli.main import dispatch

    assert dispatch(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(word in shown.err for word in words), shown.err


@pytest.fixture(scope="module")
def bad_input(tmp_path_factory) -> Path:
    """A directory of things that cannot be trained on."""
    directory = tmp_path_factory.mktemp("bad input")
    for name, files in {
        "no-config": ["model.safetensors", "tokenizer.json"],
        "no-weights": ["config.json", "tokenizer.json"],
        "no-tokenizer": ["config.json", "model.safetensors"],
    }.items():
        (directory / name).mkdir()
        for file in files:
            (directory / name / file).write_text("{}")
    (directory / "empty.jsonl").touch()
    (directory / "blank.jsonl").write_text("\n\n")
    (directory / "torn.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "re')
    (directory / "file").write_text("")
    return directory


def test_every_bad_input_is_refused_by_name_before_torch_is_loaded(bad_input):
    """One process judges them all, and looks after each at what it has loaded and written."""
    out = bad_input / "out"
    cases = {
        "bogus=1": ["bogus"],
        "lora.rnk=1": ["lora.rnk", "lora.rank"],
        "quant=nf5": ["nf5", "nf4"],
        "lora.rank=0": ["lora.rank=0", "at least 1"],
        "lora.alpha=-1": ["lora.alpha=-1", "positive"],
        "lora.alpha=nan": ["nan", "finite"],
        "lora.alpha_over_rank=null": ["neither"],
        "quant.block_size=48": ["48", "power of two"],
        "quant=none quant.double_quant=true": ["double_quant", "none", "nf4"],
        "optim.batch_size=8 optim.micro_batch_size=3": ["micro_batch_size=3", "1, 2, 4, 8"],
        "data=alpaca": ["data.path", "data.hub", "none of them"],
        f"data=pairs data.path={bad_input}/none.jsonl": ["none.jsonl", "no such file"],
        f"data=pairs data.path={bad_input}/empty.jsonl": ["empty.jsonl", "no usable rows"],
        f"data=pairs data.path={bad_input}/blank.jsonl": ["blank.jsonl", "no usable rows"],
        f"data=pairs data.path={bad_input}/torn.jsonl": ["torn.jsonl:2"],
        f"eval.choice_path={bad_input}/none.jsonl": ["none.jsonl"],
        f"model={bad_input}/none": ["none", "no directory"],
        f"model={bad_input}/file": ["is a file"],
        f"model={bad_input}/no-config": ["no-config", "config.json"],
        f"model={bad_input}/no-weights": ["no weights", "safetensors"],
        f"model={bad_input}/no-tokenizer": ["no tokenizer", "tokenizer.json"],
        "model=org/name-that-is-not-cached": ["org/name-that-is-not-cached", "offline"],
        f"paths.out={bad_input}/file/out": ["paths.out", "Not a directory", "give a directory"],
        "tracker=wandb_online": ["WANDB_API_KEY", "wandb_offline"],
    }
    code = """
        import contextlib, io, json, sys
        from harness.cli.main import dispatch
        results = {}
        for case in json.loads(sys.argv[1]):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = dispatch(["run", "--json", f"paths.out={sys.argv[2]}", *case.split(" ")])
            results[case] = [code, out.getvalue(), err.getvalue(), "torch" in sys.modules]
        print(json.dumps(results))
    """
    spelt = {case.replace(str(bad_input), "."): words for case, words in cases.items()}
    home = {"HOME": str(bad_input), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | home
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), json.dumps(list(spelt)), str(out)],
        capture_output=True,
        text=True,
        cwd=bad_input,
        env=environment,
        timeout=60,
    )
    assert done.stderr == ""
    for case, (code_, stdout, stderr, torch_loaded) in json.loads(done.stdout).items():
        assert (code_, stdout, torch_loaded) == (2, "", False), (case, code_, stdout, stderr)
        assert all(word in stderr for word in spelt[case]), (case, stderr)
        assert all(line.startswith("harness: ") for line in stderr.splitlines()), stderr
    assert not (out / "runs").exists()


def completions(line: str) -> list[str]:
    """Return what TAB offers after `line` in a real bash, through the script that we install."""
    script = """
        eval "$(harness -sc install=bash)"
        function_name=$(complete -p harness | sed -E 's/.*-F ([^ ]+).*/\\1/')
        COMP_LINE=$1 COMP_POINT=${#1}
        read -ra COMP_WORDS <<< "$COMP_LINE"
        if [[ $COMP_LINE == *" " ]]; then COMP_WORDS+=(""); fi
        COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
        $function_name
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", line],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.skipif(not (SCRIPTS / "harness").exists(), reason="the package is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("harness r", ["run", "report"]),
        ("harness sweep nf", ["nf4_vs_int4"]),
        ("harness sweep demo --d", ["--dry-run"]),
        ("harness sweep demo lora.r", ["lora.rank=", "lora.rank_pattern.", "lora.rslora="]),
        ("harness run quant=nf4", ["quant=nf4", "quant=nf4_dq"]),
        ("harness run lora.r", ["lora.rank=", "lora.rank_pattern.", "lora.rslora="]),
        ("harness run seed=1 optim.st", ["optim.steps="]),
        ("harness run tracker=none --c", ["--cfg", "--config-dir"]),
        ("harness run --cfg j", ["job"]),
        ("harness ask ba", ["base"]),
        ("harness ask base --comp", ["--compare"]),
        ("harness export it --to merged_", ["merged_4bit"]),
    ],
)
def test_tab_completes_commands_groups_options_and_keys_in_bash(line, offered):
    assert completions(line) == offered
