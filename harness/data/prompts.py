"""Prompts that are to be answered, from a file or a command line, as examples of a run's own form.

Imports nothing heavy: a file that cannot be used is refused before a model is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.config.schema import DataConfig, DataForm
from harness.data.example import Example, Role, Turn, pair
from harness.data.files import file_records, plain_lines, suffix_of
from harness.data.records import Record, RecordForm, example_of
from harness.errors import DataError

_OPEN = "…"
"""An answer that is not given: a conversation to be rendered ends with one, and nothing reads it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, and a good answer where one is known."""

    example: Example
    reference: str = ""


def prompt_of(text: str, config: DataConfig, earlier: tuple[Turn, ...] = ()) -> Prompt:
    """Return a text as the rows of `config` would have it, after `earlier` turns of the same conversation."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"a prompt must be UTF-8 text, got {text!r:.80}") from None
    if config.form is DataForm.text:
        return Prompt(Example(text=text, complete=False))
    asked = pair(text, _OPEN)
    return Prompt(replace(asked, turns=(*earlier, *asked.turns)))


def read_prompts(path: str, config: DataConfig, key: str) -> tuple[Prompt, ...]:
    """Return the prompts of a file: a line of a .txt each, or a row of a .jsonl or .json file.

    A row has the columns of the run's data, or `prompt` (with `input` and `response`, if it likes), or
    `messages`. Its response, or last assistant message, is no part of what is asked.

    Raises:
        DataError: the file is missing, has another suffix, or a row that asks nothing.
    """
    if suffix_of(Path(path)) == ".txt":
        found = tuple(prompt_of(line, config) for line in plain_lines(path, key))
    else:
        found = tuple(_prompt(record, config) for record in file_records(path, key))
    if not found:
        raise DataError(f"{key}={path} asks nothing: it is empty")
    return found


def _prompt(record: Record, config: DataConfig) -> Prompt:
    row, place = record.value, record.place
    if not isinstance(row, dict):
        raise DataError(f"{place}: a prompt is an object with a column 'prompt', got {row!r:.40}")
    if config.form is DataForm.text:
        column = config.text_column if config.text_column in row else "prompt"
        if not isinstance(row.get(column), str):
            raise _asks_nothing(place, row, (config.text_column, "prompt"))
        return prompt_of(row[column], config)
    for column, response in (
        (config.prompt_column, config.response_column),
        ("prompt", "response"),
    ):
        if column in row:
            return _pair(row, column, response, config, place)
    for column in (config.messages_column, "messages", "conversations"):
        if column in row:
            return _conversation(row, column, config, place)
    raise _asks_nothing(place, row, (config.prompt_column, "prompt", "messages"))


def _pair(
    row: Mapping[str, Any], column: str, response: str, config: DataConfig, place: str
) -> Prompt:
    given = row.get(response)
    reference = given if isinstance(given, str) else ""
    form = replace(
        RecordForm.of(config),
        form=DataForm.pairs,
        prompt_column=column,
        response_column=response,
        input_column=next((c for c in (config.input_column, "input") if c in row), None),
    )
    return Prompt(example_of({**row, response: reference or _OPEN}, form, place), reference)


def _conversation(row: Mapping[str, Any], column: str, config: DataConfig, place: str) -> Prompt:
    messages = row[column]
    form = replace(RecordForm.of(config), form=DataForm.messages, messages_column=column)
    if isinstance(messages, list) and messages and not _is_answered(messages[-1]):
        opened = [*messages, {"role": Role.assistant.value, "content": _OPEN}]
        return Prompt(example_of({**row, column: opened}, form, place))
    example = example_of(row, form, place)
    return Prompt(example, example.response)


def _is_answered(message: object) -> bool:
    role = message.get("role", message.get("from")) if isinstance(message, dict) else None
    return role in (Role.assistant.value, "gpt", "bing", "chatgpt")


def _asks_nothing(place: str, row: Mapping[str, Any], columns: tuple[str, ...]) -> DataError:
    wanted = " or ".join(f"'{column}'" for column in dict.fromkeys(columns))
    return DataError(f"{place}: needs a column {wanted}, got {', '.join(row) or 'no columns'}")
