"""Local files: what a row becomes, and how a malformed one is named."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest

from harness.config.schema import DataConfig, DataForm
from harness.data.example import Example, Role, Turn, pair
from harness.data.files import read_file, text_examples
from harness.data.records import RecordForm
from harness.embedded import corpus
from harness.errors import DataError

PAIRS = RecordForm.of(DataConfig())
ALPACA = RecordForm.of(
    DataConfig(prompt_column="instruction", input_column="input", response_column="output")
)
MESSAGES = RecordForm.of(DataConfig(form=DataForm.messages))
TEXT = RecordForm.of(DataConfig(form=DataForm.text))


def _read(tmp_path: Path, name: str, content: str | bytes, form: RecordForm):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(str(path), form, "data.path")


def test_jsonl_pairs_keep_their_order_and_skip_blank_lines(tmp_path):
    content = '{"prompt": "a", "response": "b"}\n\n{"prompt": "c", "response": "d", "id": 7}\n'
    rows = _read(tmp_path, "x.jsonl", content, PAIRS)
    assert rows.examples == (pair("a", "b"), pair("c", "d"))


def test_a_byte_order_mark_and_crlf_are_read(tmp_path):
    content = (
        b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\r\n{"prompt": "c", "response": "d"}\r\n'
    )
    assert len(_read(tmp_path, "x.jsonl", content, PAIRS).examples) == 2


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    content = '{"prompt": "a\u2028b", "response": "c"}\n'
    assert _read(tmp_path, "x.jsonl", content, PAIRS).examples == (pair("a\u2028b", "c"),)


def test_json_list_reads_as_the_json_module_does(tmp_path):
    values = [{"prompt": f"p\n{i}", "response": f"r, ]{i}"} for i in range(5)]
    for indent in (None, 2):
        rows = _read(tmp_path, f"x{indent}.json", json.dumps(values, indent=indent), PAIRS)
        assert rows.examples == tuple(pair(v["prompt"], v["response"]) for v in values)


def test_input_is_kept_apart_and_may_be_absent_or_null(tmp_path):
    content = "\n".join(
        [
            '{"instruction": "a", "input": "b", "output": "c"}',
            '{"instruction": "a", "input": null, "output": "c"}',
            '{"instruction": "a", "output": "c"}',
        ]
    )
    assert [e.input for e in _read(tmp_path, "x.jsonl", content, ALPACA).examples] == ["b", "", ""]


def test_rows_without_a_response_are_left_out_and_counted(tmp_path):
    content = '{"prompt": "a", "response": " "}\n{"prompt": "c", "response": "d"}\n'
    rows = _read(tmp_path, "x.jsonl", content, PAIRS)
    assert rows.examples == (pair("c", "d"),)
    assert rows.num_empty == 1


def test_messages_become_turns(tmp_path):
    row = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
        ]
    }
    rows = _read(tmp_path, "x.jsonl", json.dumps(row), MESSAGES)
    turns = (Turn(Role.system, "s"), Turn(Role.user, "u"), Turn(Role.assistant, "a"))
    assert rows.examples == (Example(turns=turns),)


def test_an_answer_of_calls_alone_is_something_to_learn_and_an_empty_one_is_not(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    start = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [
        {"messages": [*start, {"role": "assistant", "content": "", "tool_calls": [call]}]},
        {"messages": [*start, {"role": "assistant", "content": " "}]},
    ]
    found = _read(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows)), MESSAGES)
    assert len(found.examples) == found.num_empty == 1
    assert json.loads(found.examples[0].turns[-1].further) == {"tool_calls": [call]}


GOOD = '{"prompt": "a", "response": "b"}'
USER, ASSISTANT = '{"role": "user", "content": "u"}', '{"role": "assistant", "content": "a"}'


@pytest.mark.parametrize(
    ("name", "content", "form", "message"),
    [
        (
            "alpaca.jsonl",
            '{"instruction": "a", "input": "", "output": "b"}\n{"instruction": "a", "input": ""}',
            ALPACA,
            "alpaca.jsonl:2: column 'output' is missing; this row has instruction, input",
        ),
        (
            "x.jsonl",
            f'{GOOD}\n{{"promt": "a", "response": "b"}}',
            PAIRS,
            "x.jsonl:2: column 'prompt' is missing; this row has promt, response; near names: promt",
        ),
        ("x.jsonl", f"{GOOD}\n{{oops", PAIRS, "x.jsonl:2: not JSON"),
        (
            "x.jsonl",
            f"{GOOD}\n[1, 2]",
            PAIRS,
            "x.jsonl:2: a row is an object of columns, got a list",
        ),
        (
            "x.jsonl",
            '{"prompt": "a", "response": 4}',
            PAIRS,
            "x.jsonl:1: column 'response' must hold a string, got the number 4",
        ),
        ("x.jsonl", GOOD.encode() + b"\n\xff\n", PAIRS, "x.jsonl:2: not UTF-8 (byte 0xff)"),
        ("x.jsonl", "", PAIRS, "x.jsonl has no usable rows: it is empty"),
        (
            "x.jsonl",
            '{"prompt": "a", "response": ""}',
            PAIRS,
            "x.jsonl has no usable rows: the response of each of its 1 rows is empty",
        ),
        (
            "x.jsonl",
            '{"instruction": "a", "inputs": "b", "output": "c"}',
            ALPACA,
            "data.input_column=input is a column of no row of x.jsonl; its rows have inputs, ins",
        ),
        (
            "x.json",
            '[\n{"prompt": "a", "response": "b"},\n\n{"prompt": "a"}\n]',
            PAIRS,
            "x.json:4: column 'response' is missing",
        ),
        ("x.json", f"[\n{GOOD}\n{GOOD}]", PAIRS, "x.json:3: not JSON: expected ',' or ']'"),
        ("x.json", f"[{GOOD},\n", PAIRS, "x.json:2: not JSON"),
        ("x.json", f"[{GOOD}]\n{GOOD}", PAIRS, "x.json:2: not JSON: something follows the list"),
        ("x.json", f"[{GOOD}]]", PAIRS, "x.json:1: not JSON: something follows the list"),
        ("x.json", GOOD, PAIRS, "x.json:1: not JSON: expected '['"),
        ("x.json", "[]", PAIRS, "x.json has no usable rows: it is empty"),
        ("x.txt", "hello", PAIRS, "x.txt is plain text, but data.form=pairs; set data.form=text"),
        ("x.txt", " \n \n", TEXT, "x.txt has no usable rows"),
        (
            "x.jsonl",
            f'{{"messages": [{USER}]}}',
            MESSAGES,
            "ends with an assistant message, got user",
        ),
        ("x.jsonl", f'{{"messages": [{ASSISTANT}]}}', MESSAGES, "needs a user message"),
        (
            "x.jsonl",
            '{"messages": [{"role": "robot", "content": "u"}]}',
            MESSAGES,
            "x.jsonl:1: message 1: role must be one of system, user, assistant, tool, got 'robot'",
        ),
        (
            "x.jsonl",
            f'{{"messages": [{USER}, {{"role": "system", "content": "s"}}, {ASSISTANT}]}}',
            MESSAGES,
            "a system message can only come first, got user, system, assistant",
        ),
        (
            "x.jsonl",
            '{"messages": [{"speaker": "human", "value": "u"}]}',
            MESSAGES,
            "message 1: needs 'role' and 'content'",
        ),
        (
            "x.xlsx",
            "a,b",
            PAIRS,
            "the suffix must be .jsonl, .json, .csv, .tsv, .parquet or .txt (.gz may follow, except after "
            ".parquet), got '.xlsx'",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, form, message):
    with pytest.raises(DataError, match=re.escape(message)):
        _read(tmp_path, name, content, form)


def test_a_missing_file_is_named_with_its_neighbours(tmp_path):
    (tmp_path / "alpaca.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match=r"alpca\.jsonl: no such file; near names: alpaca\.jsonl"):
        read_file(str(tmp_path / "alpca.jsonl"), PAIRS, "data.path")


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(DataError, match="is a directory"):
        read_file(str(tmp_path), PAIRS, "data.validation_path")


def test_a_changed_file_is_read_again(tmp_path):
    assert len(_read(tmp_path, "x.jsonl", GOOD, PAIRS).examples) == 1
    assert len(_read(tmp_path, "x.jsonl", f"{GOOD}\n{GOOD}", PAIRS).examples) == 2


def test_a_file_is_parsed_once(tmp_path, monkeypatch):
    _read(tmp_path, "x.jsonl", GOOD, PAIRS)
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("parsed a second time"))
    read_file(str(tmp_path / "." / "x.jsonl"), PAIRS, "data.path")


def test_separator_lines_divide_a_text_and_blank_lines_inside_stay():
    text = "one\n\nstill one\n<|endoftext|>\ntwo\n<|endoftext|>\n"
    assert [e.text for e in text_examples(text)] == ["one\n\nstill one", "two"]


def test_blank_lines_divide_a_text_without_separators():
    examples = text_examples(" = Title = \n \n first line\n second line\n\n\nthird\n")
    assert [e.text for e in examples] == ["= Title =", "first line\n second line", "third"]
    assert all(e.complete for e in examples)


def test_one_long_document_is_divided_at_white_space_and_nothing_is_lost():
    text = " ".join(f"word{i}" for i in range(2000))
    examples = text_examples(text)
    assert "".join(e.text for e in examples) == text
    assert [e.complete for e in examples] == [False] * (len(examples) - 1) + [True]
    assert all(e.text.endswith(" ") and 2000 <= len(e.text) < 2010 for e in examples[:-1])


def test_every_document_of_a_file_of_stories_is_found(tmp_path):
    documents = list(islice(corpus.documents(corpus.Part.HELD_OUT, seed=3), 600))
    texts = [d.text for d in documents]
    separated = _read(tmp_path, "stories.txt", "\n<|endoftext|>\n".join(texts), TEXT)
    assert [e.text for e in separated.examples] == texts
    blank = _read(tmp_path, "blank.txt", "\n\n".join(texts), TEXT)
    assert [e.text for e in blank.examples] == texts
