"""Little that asks for very much: sizes are counted before anything is expanded, so that it is refused soon.

A bomb that is expanded does not end within the suite's limit for a test. How long the slowest takes as a
process of its own, imports and all, stands in the table of `make faults`.
"""

import os
import string
from pathlib import Path

import pytest
import yaml

from harness.cli.main import dispatch
from harness.config.compose import CONFIG_DIR_VARIABLE
from tests.faults.commands import ends_in_words, fresh_harness
from tests.faults.test_requests import WHOLE

BILLION = "1000000000"
DIGITS = "9" * 5000
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
    for a, b in zip(string.ascii_lowercase[:12], string.ascii_lowercase[1:13], strict=True)
)
OVERRIDES = {
    "rows of a task": ["data=rule", f"data.train_rows={BILLION}"],
    "rows of another split": ["data=dialect", f"data.test_rows={BILLION}"],
    "facts": ["data=facts", f"data.train_rows={BILLION}"],
    "divisors": [f"optim.batch_size={BILLION}", "optim.micro_batch_size=3"],
    "shares": [f"optim.batch_size={BILLION}", "resources.data_parallel=7"],
    "digits": [f"lora.rank={DIGITS}"],
    "digits of a float": ["optim.lr=1" + "0" * 400],
    "brackets": [f"tracker.tags={'[' * 800}"],
    "braces": [f"lora.rank={'{a:' * 800}1{'}' * 800}"],
    "a long name": [f"paths.out={'x' * 5000}"],
    "a range": ["lora.rank=range(1,1000000000)"],
    "itself": ["data.path=${data.path}"],
}
QUESTIONS: dict[str, dict[str, object] | str] = {
    "range": {"space": {"lora.rank": f"range(1,{BILLION})"}},
    "range of floats": {"space": {"optim.lr": "range(0.0001,1000,0.0000001)"}},
    "product": {"space": {f"lora.{k}": "range(1,1000)" for k in ("rank", "alpha")}},
    "seeds": {"search": {"seeds": list(range(20_001))}},
    "fresh seeds": {
        "margin": 0.1,
        "search": {"seeds": [0, 1]},
        "confirm": {"seeds": "auto", "at_most": int(BILLION)},
    },
    "processes": {"resources": {"devices": f"cpu:{BILLION}"}},
    "silence": {"resources": {"hang_seconds": 1e300}},
    "trials": {"search": {"method": "random", "trials": 10**12}},
    "a seed": {"search": {"method": "random", "trials": 2, "sampler_seed": 10**40}},
    "jobs": {
        "study": {"storage": "postgresql://u@h/x"},
        "launcher": {"kind": "local", "workers": int(BILLION)},
    },
    "aliases": ALIASES + yaml.safe_dump(WHOLE),
    "aliases in an axis": ALIASES + "question: x\nspace: {lora.rank: *m}\n",
    "a date": "question: 2001-99-99\n",
    "digits": f"question: x\nspace: {{lora.rank: {DIGITS}}}\n",
    "brackets": "space: " + "[" * 50_000,
    "a mapping of lists": "? [a, b]\n: c\n",
    "a tag": "space: !!python/object/apply:os.system [ls]\n",
    "NUL": "question: \0\n",
}


def asked(question: dict[str, object] | str, file: Path) -> list[str]:
    file.write_text(question if isinstance(question, str) else yaml.safe_dump(WHOLE | question))
    return ["sweep", str(file), "--dry-run"]


@pytest.mark.parametrize("kind", OVERRIDES)
def test_an_override_that_asks_for_very_much_is_refused(kind, tally, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with tally("bombs") as row:
        for command in (["run"], ["plan"], ["plan", "--explain"]):
            row.check(f"{command} {kind}", lambda c=command: dispatch([*c, *OVERRIDES[kind]]) == 2)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_question_that_asks_for_very_much_is_refused(kind, tally, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = asked(QUESTIONS[kind], tmp_path / "q.yaml")
    with tally("bombs") as row:
        row.check(f"sweep {kind}", lambda: dispatch(words) == 2)
        row.check(f"plan {kind}", lambda: dispatch(["plan", words[1]]) == 2)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_processes_that_are_asked_for_very_much_end(tally, tmp_path):
    place = f"paths.out={tmp_path / 'out'}"
    with tally("bombs, as processes") as row:
        for kind, words in OVERRIDES.items():
            extra = [] if any(word.startswith("paths.out") for word in words) else [place]
            row.check(
                kind, lambda w=[*words, *extra]: ends_in_words(fresh_harness(["run", *w]), (2,))
            )
        for kind, question in QUESTIONS.items():
            words = asked(question, tmp_path / "q.yaml")
            row.check(kind, lambda words=words: ends_in_words(fresh_harness(words), (2,)))


ROW_BOMBS = {
    "brackets": "[" * 200_000,
    "objects": '{"a":' * 100_000,
    "digits": '{"prompt": ' + DIGITS + "}",
    "escapes": '{"prompt": "' + "\\ud800" * 1000 + '", "response": "x"}',
}


@pytest.mark.parametrize("kind", ROW_BOMBS)
def test_a_row_that_asks_for_very_much_is_refused(kind, tally, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text(ROW_BOMBS[kind] + "\n")
    with tally("bombs") as row:
        row.check(kind, lambda: dispatch(["run", "data=pairs", f"data.path={file}"]) == 2)


OWN_FILES = {
    "aliases": ALIASES,
    "brackets": "format: " + "[" * 5000,
    "digits": f"block_size: {DIGITS}",
    "a tag": "!!python/object/apply:os.system [ls]",
    "a set": "!!set {a}",
    "a list": "[1]",
    "itself": "&a [*a]",
    "a date": "block_size: 2001-99-99",
    "NUL": "format: \0",
}


@pytest.mark.parametrize("kind", OWN_FILES)
def test_a_file_of_the_users_own_groups_is_counted_before_hydra_has_it(
    kind, tally, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, "")  # the option sets it
    (tmp_path / "own" / "quant").mkdir(parents=True)
    (tmp_path / "own" / "quant" / "mine.yaml").write_text(OWN_FILES[kind])
    with tally("bombs") as row:
        words = ["plan", "quant=mine", "--config-dir", "own"]
        row.check(f"own group, {kind}", lambda: dispatch(words) == 2)
        row.check("named", lambda: "mine.yaml" in capsys.readouterr().err)


def test_an_own_group_that_is_a_pipe_is_not_waited_for(tally, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, "")
    (tmp_path / "own" / "quant").mkdir(parents=True)
    os.mkfifo(tmp_path / "own" / "quant" / "mine.yaml")
    with tally("bombs") as row:
        row.check("a pipe", lambda: dispatch(["plan", "--config-dir", "own"]) == 2)
