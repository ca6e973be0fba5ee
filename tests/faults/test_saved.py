"""What is made of a run that has ended: asked, exported and sent on, with hostile words and damaged files."""

import io
import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from harness.cli.main import dispatch
from harness.config.compose import CONFIG_DIR_VARIABLE
from harness.records.run_directory import RunDirectory
from tests.faults.commands import (
    CANARIES,
    ends_in_words,
    files_with_secrets,
    fresh_harness,
    secrets_in,
)
from tests.faults.damage import damaged
from tests.faults.tally import TIMES

pytestmark = pytest.mark.faults
TEXTS = (
    *(
        "",
        " ",
        "a\0b",
        "\x1b[2J\x1b]0;x\x07",
        "\u202egnp.exe",
        "\ud800",
        "\udcff",
        "<|im_end|>",
        "</s>",
    ),
    *(
        "{{ 1 // 0 }}",
        "${seed}",
        "=HYPERLINK(1)",
        "<script>",
        "x" * 3000,
        "\n\n\n",
        "lora.rank=4",
        "-",
        "--",
    ),
)
NUMBERS = ("", "-1", "0", "1e400", "nan", "inf", "9" * 400, "0x10", "1_0", "abc", "1.5", "\u0663")
NAMES = (
    *(
        "",
        ".",
        "..",
        "/",
        "/dev/zero",
        "/proc/self",
        "~nosuchuser",
        "base",
        "small",
        "\ud800",
        "\x1b[2J",
    ),
    *("x" * 300, "*", "[", "../../x", "r1", "--", "\0"),
)
HOSTILE = [
    *(["ask", name, "hello"] for name in NAMES),
    *(["ask", "base", text] for text in TEXTS),
    *(["ask", "small", text] for text in TEXTS),
    *(["ask", "base", "hi", "--temperature", each] for each in NUMBERS),
    *(["ask", "base", "hi", "--temperature", "1", "--top-p", each] for each in NUMBERS),
    *(["ask", "base", "hi", "--temperature", "1", "--seed", each] for each in NUMBERS),
    *(["ask", "base", "hi", "--max-tokens", each] for each in NUMBERS),
    *(["ask", "base", "hi", "--compare", each] for each in NAMES),
    *(["ask", "base", "--file", each] for each in NAMES),
    *(["export", name, "--to", "adapter"] for name in NAMES),
    *(["export", "small", "--to", each] for each in ("", "x", "\x1b", "gguf\n")),
    *(["export", "small", "--to", "gguf", "--types", each] for each in ("", ",", "f32", "\x1b")),
    *(
        ["export", "small", "--to", "adapter", "--out", each]
        for each in ("/dev/null", "/proc/x", "\x1b[2J")
    ),
    *(
        ["export", "small", "--to", "adapter", "--license", each]
        for each in ("a: b\n---\n# x", "\x1b[2J")
    ),
    *(["push", name, "a/b"] for name in NAMES),
    *(["push", ".", each] for each in (*NAMES, "a/b/c", "https://u:Pa55word@h/x")),
    *(["data", "--rows", each] for each in NUMBERS),
    *(["data", "--split", each] for each in NAMES),
    *(
        ["data", f"data.path={each}", "data=pairs"]
        for each in (*NAMES, "s3://u:Pa55word@b/x.jsonl")
    ),
    *(["doctor", f"model={each}"] for each in NAMES),
    *(["plan", "--config-dir", each] for each in NAMES),
    *(["plan", "rank", f"model={each}"] for each in ("a b", "a..b/c", "a/.git", "x" * 300)),
    *(["plan", "--budget", each] for each in NUMBERS),
]


@pytest.fixture(scope="module")
def saved(world, tmp_path_factory) -> Path:
    """`paths.out` of a sweep with generated answers, each run of which can be asked; never to be changed."""
    import yaml

    root = tmp_path_factory.mktemp("saved")
    base = [
        *(f"model={world / 'tiny'}", "data=pairs", f"data.path={world / 'sums.jsonl'}"),
        *(
            "data.validation_rows=4",
            "data.test_rows=4",
            "data.max_length=64",
            "eval.generate_rows=2",
        ),
        *(
            "eval.max_new_tokens=2",
            "optim.steps=2",
            "optim.batch_size=4",
            "tracker=none",
            "quant=nf4",
        ),
        f"paths.out={root / 'out'}",
    ]
    tree = {"question": "Does it hold?", "base": base, "space": {"lora.rank": "choice(1,2)"}}
    (root / "small.yaml").write_text(yaml.safe_dump(tree | {"resources": {"devices": "cpu"}}))
    assert dispatch(["sweep", str(root / "small.yaml")]) == 0
    return root / "out"


@pytest.fixture
def place(saved, tmp_path, monkeypatch) -> Path:
    """A copy of it, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(saved, tmp_path / "out")
    return tmp_path / "out"


def ends(
    capfd: pytest.CaptureFixture[str], words: list[str], codes: tuple[int, ...] = (0, 1, 2)
) -> bool:
    """Whether a command ends with a documented code, in words, without a secret or a control character."""
    capfd.readouterr()
    code = dispatch(words)
    os.environ.pop(CONFIG_DIR_VARIABLE, None)  # which --config-dir sets for the process
    said = capfd.readouterr()
    assert "a fault of the harness" not in said.err, said.err[-700:]
    assert code in codes, f"exit {code}: {said.err[-300:]}"
    told = (said.out + said.err).encode(errors="replace")
    assert not secrets_in(told), secrets_in(told)
    assert all(c.isprintable() or c in "\r\n\t" for c in said.out + said.err), repr(said)[-300:]
    return code in (0, 130) or "harness: " in said.err


@pytest.mark.timeout(900)
def test_hostile_words_for_what_is_made_of_runs(place, tally, capfd):
    run = next((place / "runs").iterdir()).name
    with tally("hostile words: ask, export, push, data") as row:
        for words in HOSTILE:
            named = [run if word == "r1" else word for word in words]
            short = (
                ["--max-tokens", "2"] if words[0] == "ask" and "--max-tokens" not in words else []
            )
            row.check(f"{words}"[:200], lambda w=[*named, *short]: ends(capfd, w))
        row.check("no secret in a file", lambda: not files_with_secrets(place.parent))


PROMPTS = {
    "no file": None,
    "empty": b"",
    "bytes": bytes(range(256)),
    "UTF-16": "a\n".encode("utf-16"),
    "NUL": b"a\0b\n",
    "control characters": b'{"prompt": "\\u001b[2J\\u0007\\u202e"}\n',
    "a surrogate": b'{"prompt": "\\ud800"}\n',
    "no column": b'{"x": 1}\n',
    "a list": b"[1]\n",
    "a number": b"1\n",
    "messages": b'{"messages": [{"role": "assistant", "content": "x"}]}\n',
    "no messages": b'{"messages": []}\n',
    "odd messages": b'{"messages": [{"role": 1, "content": null}, 2]}\n',
    "a bomb": b"[" * 100_000,
    "digits": b'{"prompt": ' + b"9" * 5000 + b"}",
    "a million characters": b'{"prompt": "' + b"a" * 1_000_000 + b'"}',
    "empty prompts": b'{"prompt": ""}\n{"prompt": " "}\n',
    "a tool": b'{"messages": [{"role": "tool", "content": "x"}]}\n',
}


def _prompt_file(place: Path) -> Path:
    file = place.parent / "sound.jsonl"
    file.write_text('{"prompt": "How much are 1 and 2?"}\n')
    return file


def test_prompts_of_a_file(place, tally, capfd):
    assert dispatch(["ask", "small", "--file", str(_prompt_file(place))]) == 0
    with tally("prompts of a file") as row:
        for what, content in PROMPTS.items():
            for suffix in ("jsonl", "json", "txt", "bin", "csv"):
                file = place.parent / f"p.{suffix}"
                if content is not None:
                    file.write_bytes(content)
                words = [
                    "ask",
                    "small",
                    "--compare",
                    "base",
                    "--file",
                    str(file),
                    "--max-tokens",
                    "1",
                ]
                row.check(f"{what}.{suffix}", lambda w=words: ends(capfd, w))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0\x1b[2J", b"", b"\xed\xa0\x80"])
def test_a_prompt_from_a_pipe(place, tally, capfd, monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    with tally("prompts of a pipe") as row:
        row.check(repr(content), lambda: ends(capfd, ["ask", "small", "--max-tokens", "1"]))


FILES_OF_A_RUN = (
    *("adapter/adapter_model.safetensors", "run.json", "exports.json", "answers.jsonl"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "scores.jsonl"),
    *("config.yaml", "metrics.jsonl", "asked.jsonl"),
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("tries", [12 * TIMES])
def test_a_run_whose_files_are_damaged_is_asked_and_exported(place, tries, tally, capfd):
    run = RunDirectory(sorted((place / "runs").iterdir())[0])
    assert ends(capfd, ["export", run.path.name, "--to", "adapter"], (0,))
    assert ends(capfd, ["ask", run.path.name, "hello", "--max-tokens", "1"], (0,))
    files = [run.path / name for name in FILES_OF_A_RUN if (run.path / name).is_file()]
    files += [path for path in (run.path / "export").rglob("*") if path.is_file()]
    chance = random.Random(81)
    with tally("a saved run, damaged") as row:
        for number in range(tries):
            file = files[number % len(files)]
            sound = file.read_bytes()
            what, content = damaged(sound, chance)
            file.write_bytes(content)
            for words in (
                ["ask", run.path.name, "hello", "--max-tokens", "1"],
                ["export", run.path.name, "--to", "adapter"],
                ["status", "small"],
                ["report", "small"],
                ["push", str(run.path / "export/adapter"), "a/b"],
            ):
                if words[0] == "report" and number % 8:
                    continue
                row.check(
                    f"{number} {file.name} {what}, {words[0]}", lambda w=words: ends(capfd, w)
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sound)


def test_an_export_takes_the_place_of_an_export_only(place, tally, capfd):
    project = place.parent / "project"
    project.mkdir()
    (project / "README.md").write_text("# Mine\n")
    (project / "work.py").write_text("x = 1\n")
    words = ["export", "small", "--to", "adapter", "--out"]
    with tally("exports over other folders") as row:
        row.check("a project", lambda: ends(capfd, [*words, str(project)], (2,)))
        row.check("is whole", lambda: (project / "work.py").read_text() == "x = 1\n")
        row.check("a new folder", lambda: ends(capfd, [*words, "made"], (0,)))
        row.check("an export", lambda: ends(capfd, [*words, "made"], (0,)))
        (place.parent / "made" / ".git").mkdir()
        row.check("a clone of one", lambda: ends(capfd, [*words, "made"], (2,)))
        row.check("has its history", lambda: (place.parent / "made" / ".git").is_dir())
        row.check("nothing staged is left", lambda: not list(place.parent.glob(".made*")))


CARDS = (
    b"",
    b"\xff\xfe",
    b"---\n[\n---\n",
    b"---\n1\n---\n",
    b"---\n!!set {a}\n---\n",
    b"---\nconfigs: 1\n",
)


def test_rows_take_the_place_of_rows_and_odd_cards_are_refused(world, place, tally, capfd):
    words = ["data", f"model={world / 'tiny'}", "data=pairs", f"data.path={world / 'sums.jsonl'}"]
    words += ["data.validation_rows=4", "data.test_rows=4", "data.max_length=64", "--out", "rows"]
    with tally("data sets that are written and pushed") as row:
        row.check("a new folder", lambda: ends(capfd, words, (0,)))
        row.check("its own", lambda: ends(capfd, words, (0,)))
        for number, card in enumerate(CARDS):
            (place.parent / "rows" / "README.md").write_bytes(card)
            for flags in ([], ["--data"]):
                row.check(
                    f"card {number} {flags}",
                    lambda flags=flags: ends(capfd, ["push", "rows", "a/b", *flags], (1, 2)),
                )
        row.check("of another", lambda: ends(capfd, words, (2,)))


def test_rows_that_would_command_a_terminal_are_written_out(world, place, tally, capfd):
    rows = [{"prompt": f"\x1b[2J{i}\x07\u202e", "response": f"\x9bx\r\x08y{i}"} for i in range(30)]
    file = place.parent / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data", f"model={world / 'tiny'}", "data=pairs", f"data.path={file}"]
    words += ["data.validation_rows=2", "data.test_rows=2", "data.max_length=64"]
    with tally("rows that would command a terminal") as row:
        row.check("data", lambda: ends(capfd, words, (0,)))


def test_a_hub_that_is_not_reached_is_a_sentence(place, tally):
    (place.parent / "README.md").write_text("---\nlicense: mit\n---\n")
    reach = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "x"}
    with tally("hubs that are not reached") as row:
        for address in ("http://127.0.0.1:9", "nowhere", "http://["):
            for words in (["push", str(place.parent), "a/b"], ["plan", "model=a/b"]):
                done = fresh_harness(words, environment={**reach, "HF_ENDPOINT": address})
                row.check(f"{address} {words[0]}", lambda d=done: ends_in_words(d, (1, 2)))
