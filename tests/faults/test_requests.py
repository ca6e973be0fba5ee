"""What people and other programs type: every refusal is a sentence with exit code 2, and shows no secret."""

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cli.boundary import exit_code_of
from harness.cli.main import dispatch
from harness.config.compose import compose_run
from harness.config.schema import DataForm
from harness.config.validate import validate
from harness.data.files import read_file
from harness.data.records import RecordForm
from harness.evals.choices import read_choices
from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.question.question import PARTS
from harness.records.record import (
    Estimate,
    Record,
    RecordError,
    RunStatus,
    read_record,
    record_tree,
    write_record,
)
from tests.faults.tally import tries

TRIES = tries(20, 250)
PIECES = (
    *(
        "lora.rank",
        "optim.lr",
        "quant",
        "quant.format",
        "data.path",
        "seed",
        "model",
        "paths.out",
        "name",
    ),
    *(
        "=",
        "=",
        "=",
        ",",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "'",
        '"',
        "\\",
        "${",
        "}",
        ":",
        "~",
        "+",
        "@",
        "/",
    ),
    *(
        "choice(",
        "range(1,10)",
        "range(1,1000000000)",
        "interval(",
        "tag(log,",
        "glob(*)",
        "sort(1,2)",
    ),
    *(
        "1",
        "-1",
        "1e999",
        "9" * 5000,
        "0x" + "f" * 5000,
        "nan",
        "null",
        "true",
        "é",
        "\ud800",
        "\x1b[31m",
    ),
    *("\0", "\u202e", "${oc.env:HOME}", "${oc.env:SECRET_TOKEN}", "${data.path}", "${oc.decode:x}"),
    *("_target_", "hydra.run.dir", "../../x", "[" * 500, "x" * 5000, " ", "\n", "=HYPERLINK(1)"),
)
SECRETS = {
    "WANDB_API_KEY": "c0ffee" * 7,
    "PGPASSWORD": "correct-horse-battery",
    "SECRET_TOKEN": "tok-1234567890abcdef",
}


def text_of(chance: random.Random, pieces: int) -> str:
    return "".join(chance.choice(PIECES) for _ in range(chance.randint(1, pieces)))


@pytest.fixture
def secrets(monkeypatch) -> dict[str, str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return SECRETS


def refuses_in_words(capsys, action) -> bool:
    """Whether an action ends with 0, or with 2 and a message without a secret or a control character."""
    code = exit_code_of(action)
    said = capsys.readouterr().err
    assert code in (0, 2), said
    assert not any(value in said for value in (*SECRETS.values(), "Pa55word"))
    assert all(c.isprintable() or c == "\n" for c in said), said
    assert max(map(len, said.split("\n"))) < 5000
    return (code == 2) == bool(said)


@pytest.mark.parametrize("tries", TRIES)
def test_overrides(tries, tally, secrets, capsys):
    chance = random.Random(11)

    def composed(words: list[str]) -> int:
        validate(compose_run(words))
        return 0

    with tally("overrides") as row:
        for number in range(tries):
            key = chance.choice(
                ("", "lora.rank=", "data.path=", "optim.lr=", "tracker.tags=", "+x=")
            )
            words = [key + text_of(chance, 6) for _ in range(chance.randint(1, 2))]
            row.check(
                f"{number} {words!r}"[:200],
                lambda words=words: refuses_in_words(capsys, lambda: composed(words)),
            )


@pytest.mark.parametrize(
    "value", ["${oc.decode:'[1,2]'}", "${x:'}", "${oc.create:[1]}", "${a:${b:'}}", '${oc.decode:"}']
)
def test_a_reference_that_is_none_is_refused_in_words(value, tally, secrets, capsys):
    """Hydra hands on OmegaConf's refusal of the first without a word."""

    def composed() -> int:
        validate(compose_run([f"tracker.group={value}"]))
        return 0

    with tally("overrides") as row:
        row.check(value, lambda: refuses_in_words(capsys, composed))


WHOLE = {
    "question": "Does it hold?",
    "base": ["optim.steps=2"],
    "space": {"lora.rank": "choice(1,2)"},
    "search": {"method": "grid"},
}
SECTIONS = (
    "search",
    "confirm",
    "resources",
    "study",
    "launcher",
    "objective",
    "constraints",
    "space",
)
KEYS = (
    *(
        "method",
        "trials",
        "seeds",
        "sampler_seed",
        "pruner",
        "starts",
        "in_flight",
        "top",
        "at_most",
    ),
    *(
        "split",
        "devices",
        "cohort",
        "hang_seconds",
        "storage",
        "heartbeat_seconds",
        "kind",
        "workers",
    ),
    *("time_minutes", "grace_seconds", "memory_gib", "setup", "eval/loss", "lora.rank", "quant"),
)


def hostile_yaml(chance: random.Random) -> bytes:
    """Return a question's file with something odd in it."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
        for a, b in zip(string.ascii_lowercase[:12], string.ascii_lowercase[1:13], strict=True)
    )
    odd = chance.choice(
        (
            *("2001-99-99", "!!int abc", "!!float zz", "!!timestamp abc", "!!bool x", "!!int ''"),
            *("9" * 5000, "[" * 50_000, "{a: " * 50_000, "!!python/object/apply:os.system [ls]"),
            *("&a [*a]", "{<<: *none}", "? {a: b}\n: c", "'range(1,1000000000)'", "!!binary '#'"),
            *("!!set {a, b}", "[[[1]]]", "{a: {b: {c: d}}}", "~", "''", "0b" + "1" * 20000, bomb),
        )
    )
    text = yaml.safe_dump(WHOLE, sort_keys=False)
    line = chance.choice(text.splitlines())
    key = line.partition(":")[0] if ":" in line else "space"
    text = text.replace(line, f"{key}: {odd}", 1)
    content = text.encode(errors="surrogatepass")
    if chance.random() < 0.2:
        content = content[: chance.randrange(len(content))] + chance.choice(
            (b"\xff", b"\0", b"\x1b")
        )
    return content


@pytest.mark.parametrize("tries", TRIES)
def test_files_of_questions(tries, tally, secrets, capsys, tmp_path):
    chance, file = random.Random(12), tmp_path / "q.yaml"

    def checked() -> int:
        check_space(load_question(str(file), []))
        return 0

    with tally("questions (YAML)") as row:
        for number in range(tries):
            file.write_bytes(hostile_yaml(chance))
            row.check(
                f"{number} {file.read_bytes()[:80]!r}", lambda: refuses_in_words(capsys, checked)
            )


SCALES: tuple[Any, ...] = (
    *(
        [],
        "x",
        3,
        {},
        {1: {}},
        {1: {}, "a": {}},
        {None: {}},
        {True: {"base": ["seed=1"]}},
        {"a": None},
    ),
    *(
        {"a": {"base": [1]}},
        {"a": {"base": None}},
        {"a": {"space": None}},
        {"a": {1: 2}},
        {2.5: {}},
    ),
    *(
        {"a": {"scales": {"b": {}}}},
        {"a": {"scale": "b"}},
        {"\x1b[2J": {}},
        {"a": {"question": None}},
    ),
)


@pytest.mark.parametrize("scales", SCALES, ids=range(len(SCALES)))
def test_scales_of_a_question(scales, tally, secrets, capsys, tmp_path):
    file = tmp_path / "q.yaml"

    def checked(words: list[str]) -> int:
        check_space(load_question(str(file), words))
        return 0

    with tally("scales of questions") as row:
        for whole in (WHOLE, WHOLE | {"base": 3}, WHOLE | {"space": [1]}):
            file.write_text(yaml.safe_dump(whole | {"scales": scales}))
            for words in ([], ["scale=a"], ["scale=1"], ["scale=\x1b"]):
                row.check(
                    f"{scales!r} {words}",
                    lambda words=words: refuses_in_words(capsys, lambda: checked(words)),
                )


@pytest.mark.parametrize("tries", tries(8, 40))
def test_names_and_options_of_every_command(tries, tally, secrets, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chance = random.Random(13)
    with tally("command lines") as row:
        for number in range(tries):
            command = chance.choice(("status", "report", "worker", "sweep", "plan", "-sc", "run"))
            words = [command, text_of(chance, 4)]
            if command == "run":
                words[1] = "paths.out=/proc/nowhere"  # refused before anything is loaded
                words.append(text_of(chance, 3))
            row.check(
                f"{number} {words!r}"[:200],
                lambda words=words: refuses_in_words(capsys, lambda: dispatch(words)),
            )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:Pa55word@[::1/x",
        "postgresql://u@127.0.0.1:1/x?password=Pa55word",
        "'post gresql://u@h/x?password=Pa55word'",
        "postgresql://u:Pa55word/with@slash@127.0.0.1:1/x",
        "postgresql+psycopg://u@127.0.0.1:1/x?sslpassword=Pa55word&sslmode=disable",
        "mysql://u:Pa55word@h/x",
    ],
)
def test_a_password_in_an_address_is_never_printed(url, tally, secrets, capsys, tmp_path):
    words = ["worker", "x", f"study.storage={url}", f"paths.out={tmp_path / 'out'}"]
    with tally("passwords in addresses") as row:
        row.check(url, lambda: refuses_in_words(capsys, lambda: dispatch(words)))


ROWS = (
    '{"prompt": "a", "response": "b"}',
    '{"prompt": "a", "response": ' + "9" * 5000 + "}",
    '{"prompt": ' + "[" * 100_000,
    '{"prompt": "\\ud83d", "response": "b"}',
    '{"prompt": null, "response": "b"}',
    '{"prompt": "a", "response": 1e400}',
    '{"messages": [{"role": [], "content": "x"}]}',
    '{"question": "q", "choices": ["a", "\\udc00"], "answer": 0}',
    '{"question": "q", "choices": {"text": [], "label": []}, "answerKey": {}}',
    *("[]", "null", "1", '"x"', "{", "\x00", "{}", '{"a": {}}'),
)


def record_form(form: DataForm) -> RecordForm:
    return RecordForm(
        form=form,
        prompt_column="prompt",
        response_column="response",
        input_column=None,
        messages_column="messages",
        text_column="text",
    )


@pytest.mark.parametrize("form", list(DataForm))
@pytest.mark.parametrize("row_text", ROWS, ids=range(len(ROWS)))
def test_rows_of_data(form, row_text, tally, secrets, capsys, tmp_path):
    files = {suffix: tmp_path / f"rows.{suffix}" for suffix in ("jsonl", "json")}
    files["jsonl"].write_text(f"{ROWS[0]}\n{row_text}\n")
    files["json"].write_text(f"[{row_text}]")

    def read(path: Path) -> int:
        read_file(str(path), record_form(form), "data.path")
        return 0

    def questions() -> int:
        read_choices(str(files["jsonl"]))
        return 0

    with tally("rows of data") as row:
        for path in files.values():
            row.check(path.name, lambda path=path: refuses_in_words(capsys, lambda: read(path)))
        row.check("choices", lambda: refuses_in_words(capsys, questions))


# Found by hypothesis ------------------------------------------------------------------------------

EXAMPLES = tries(8, 200)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.sampled_from(
        ["choice(1,2)", "range(1,9)", "interval(1e-4,1)", "auto", "nf4", "lora.rank", "1e3"]
    ),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def tried(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Draw so many examples, the same ones each time, and try each."""
    given(strategy)(settings(max_examples=examples)(check))()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_override_is_taken_or_refused(examples, tally, secrets, capsys):
    keys = st.sampled_from(["lora.rank", "optim.lr", "quant", "data.path", "tracker.tags", "x"])
    words = st.tuples(keys, st.sampled_from(["=", "=[", "={", ""]), st.text(max_size=40)).map(
        "".join
    )

    def composed(word: str) -> int:
        validate(compose_run([word]))
        return 0

    with tally("overrides (hypothesis)") as row:
        tried(
            examples,
            words,
            lambda word: row.check(
                repr(word), lambda: refuses_in_words(capsys, lambda: composed(word))
            ),
        )


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_part_of_a_question_is_taken_or_refused(examples, tally, secrets, capsys, tmp_path):
    file = tmp_path / "q.yaml"
    parts = st.dictionaries(st.sampled_from([*PARTS, "scales"]), TREES, min_size=1, max_size=3)
    sections = st.fixed_dictionaries(
        {}, optional={each: st.dictionaries(st.sampled_from(KEYS), TREES) for each in SECTIONS}
    )

    def checked() -> int:
        check_space(load_question(str(file), []))
        return 0

    def check(tree: dict[str, Any]) -> None:
        file.write_text(yaml.safe_dump(WHOLE | tree), encoding="utf-8", errors="replace")
        row.check(repr(tree), lambda: refuses_in_words(capsys, checked))

    with tally("parts of questions (hypothesis)") as row:
        tried(examples, parts | sections, check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_row_is_taken_or_refused(examples, tally, secrets, capsys, tmp_path):
    names = ["prompt", "response", "messages", "text", "question", "choices", "answer", "answerKey"]
    rows = st.dictionaries(st.sampled_from(names), TREES, max_size=4) | TREES
    file = tmp_path / "rows.jsonl"

    def read(form: DataForm) -> int:
        read_file(str(file), record_form(form), "data.path")
        return 0

    def questions() -> int:
        read_choices(str(file))
        return 0

    def check(tree: Any) -> None:
        file.write_text(f"{ROWS[0]}\n{json.dumps(tree)}\n")
        for form in DataForm:
            row.check(
                f"{form.value} {tree!r}", lambda f=form: refuses_in_words(capsys, lambda: read(f))
            )
        row.check(f"choices {tree!r}", lambda: refuses_in_words(capsys, questions))

    with tally("rows of data (hypothesis)") as row:
        tried(examples, rows, check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_value_of_a_record_is_taken_or_named(examples, tally, tmp_path):
    record = Record(run_id="r", status=RunStatus.completed, config={})
    record.evals["after"] = {"eval/loss": Estimate(value=1.0, standard_error=0.1, n=8)}
    sound, file = record_tree(record), tmp_path / "run.json"

    def check(change: tuple[str, Any]) -> None:
        file.write_text(json.dumps(sound | {change[0]: change[1]}))

        def is_named() -> bool:
            try:
                write_record(tmp_path / "again.json", read_record(file))
            except RecordError as error:
                return str(file) in str(error)
            return True

        row.check(repr(change), is_named)

    with tally("records (hypothesis)") as row:
        tried(examples, st.tuples(st.sampled_from(sorted(sound)), TREES), check)
