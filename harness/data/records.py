"""One record of a data source (a JSON object, a row of a hub data set) as an `Example`.

Imports nothing heavy: a malformed record is refused before a model is loaded.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from harness.config.schema import DataConfig, DataForm
from harness.data.example import Example, Role, Turn, pair
from harness.errors import DataError, near_names


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordForm:
    """The part of `DataConfig` that says how a record is read."""

    form: DataForm
    prompt_column: str
    response_column: str
    input_column: str | None
    messages_column: str
    text_column: str

    @classmethod
    def of(cls, config: DataConfig) -> "RecordForm":
        """Return the form that `config` asks for."""
        return cls(
            form=config.form,
            prompt_column=config.prompt_column,
            response_column=config.response_column,
            input_column=config.input_column,
            messages_column=config.messages_column,
            text_column=config.text_column,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRows:
    """What a source holds; `num_empty` records had no text to learn from and were left out."""

    examples: tuple[Example, ...]
    num_empty: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record and where it stands, as `alpaca.jsonl:17`."""

    place: str
    value: object


def read_records(records: Iterable[Record], form: RecordForm, source: str) -> ReadRows:
    """Return the usable examples of `records`; `source` names them all in messages.

    A record whose response (or text) is empty is left out and counted: Alpaca's own file has some.

    Raises:
        DataError: a record is malformed, or none is usable.
    """
    examples: list[Example] = []
    num_records = 0
    input_seen = form.form is not DataForm.pairs or form.input_column is None
    seen_columns: set[str] = set()
    for record in records:
        num_records += 1
        row = _object(record)
        if not input_seen:
            seen_columns.update(row)
            input_seen = form.input_column in row
        example = example_of(row, form, record.place)
        if _has_something_to_learn(example):
            examples.append(example)
    if num_records and not input_seen:
        raise DataError(
            f"data.input_column={form.input_column} is a column of no row of {source}; "
            f"its rows have {', '.join(sorted(seen_columns))}"
        )
    if not examples:
        raise DataError(f"{source} has no usable rows: {_why_unusable(num_records, form)}")
    return ReadRows(examples=tuple(examples), num_empty=num_records - len(examples))


def _why_unusable(num_records: int, form: RecordForm) -> str:
    if not num_records:
        return "it is empty"
    what = "text" if form.form is DataForm.text else "response"
    return f"the {what} of each of its {num_records} rows is empty"


def _object(record: Record) -> Mapping[str, Any]:
    if not isinstance(record.value, dict):
        raise DataError(f"{record.place}: a row is an object of columns, got {_kind(record.value)}")
    return record.value


def example_of(row: Mapping[str, Any], form: RecordForm, place: str) -> Example:
    """Return one row as an example. Raises DataError, which names the `place`, for a malformed one."""
    match form.form:
        case DataForm.pairs:
            example = pair(
                _text(row, form.prompt_column, "prompt_column", place),
                _text(row, form.response_column, "response_column", place),
                _optional_text(row, form.input_column, place),
            )
            read = (form.prompt_column, form.response_column, form.input_column)
            _refuse_not_known(row, read, place)
            tools = "" if _TOOLS in read else _tools(row, place)
            system = () if _SYSTEM in read else _system(row, place)
            return replace(example, turns=(*system, *example.turns), tools=tools)
        case DataForm.messages:
            _refuse_not_known(row, (form.messages_column,), place)
            turns, system = _turns(row, form.messages_column, place), _system(row, place)
            if system and turns[0].role is Role.system:
                raise DataError(
                    f"{place}: has a system message and a column '{_SYSTEM}' too; keep one of them"
                )
            return Example(turns=(*system, *turns), tools=_tools(row, place))
        case DataForm.text:
            return Example(text=_text(row, form.text_column, "text_column", place))
        case _:
            assert_never(form.form)


_SYSTEM, _TOOLS = "system", "tools"
"""Columns that stand beside a conversation and belong to it."""


def _refuse_not_known(row: Mapping[str, Any], read: Sequence[str | None], place: str) -> None:
    for column in _NOT_KNOWN_OF_ROWS:
        if column not in read and row.get(column) not in (None, "", [], {}):
            raise DataError(
                f"{place}: column '{column}' is not supported here, and without it the row says something "
                "else; leave the row or the column out"
            )


def _has_something_to_learn(example: Example) -> bool:
    if not example.turns:
        return bool(example.text.strip())
    return bool(example.response.strip() or example.turns[-1].further)


def _system(row: Mapping[str, Any], place: str) -> tuple[Turn, ...]:
    """Return the system message that a row brings in a column of its own."""
    value = row.get(_SYSTEM)
    if value is None or value == "":
        return ()
    if not isinstance(value, str):
        raise DataError(f"{place}: column '{_SYSTEM}' must hold a string, got {_kind(value)}")
    return (Turn(Role.system, _whole(value, place)),)


def _tools(row: Mapping[str, Any], place: str) -> str:
    """Return the tools of a row as JSON text; some data sets hold them as such text."""
    value = row.get(_TOOLS)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{place}: column '{_TOOLS}' holds text that is no JSON list") from None
    if not value:
        return ""
    if not isinstance(value, list):
        raise DataError(f"{place}: column '{_TOOLS}' must hold a list, got {_kind(value)}")
    return _whole(json.dumps(value, ensure_ascii=False), place)


def _value(row: Mapping[str, Any], column: str, key: str, place: str) -> Any:
    if column not in row:
        raise DataError(
            f"{place}: column '{column}' is missing; this row has {', '.join(row) or 'no columns'}"
            f"{near_names(column, row)}; data.{key} names the column to read"
        )
    return row[column]


def _text(row: Mapping[str, Any], column: str, key: str, place: str) -> str:
    value = _value(row, column, key, place)
    if not isinstance(value, str):
        raise DataError(f"{place}: column '{column}' must hold a string, got {_kind(value)}")
    return _whole(value, place)


def _optional_text(row: Mapping[str, Any], column: str | None, place: str) -> str:
    """Return the text of `column`, "" where the record leaves it out or gives null."""
    if column is None or row.get(column) is None:
        return ""
    return _text(row, column, "input_column", place)


def _turns(row: Mapping[str, Any], column: str, place: str) -> tuple[Turn, ...]:
    messages = _value(row, column, "messages_column", place)
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"{place}: column '{column}' must hold a list of messages, got {_kind(messages)}"
        )
    turns = tuple(
        _turn(message, f"{place}: message {number}") for number, message in enumerate(messages, 1)
    )
    roles = [turn.role for turn in turns]
    if Role.system in roles[1:]:
        raise DataError(f"{place}: a system message can only come first, got {_names(roles)}")
    answers = [t for t in turns if t.role is Role.assistant and (t.text.strip() or t.further)]
    if answers and not any(turn.carries_loss for turn in answers):
        raise DataError(f"{place}: every answer has weight 0, so that nothing is left to learn")
    if Role.user not in roles or roles[-1] is not Role.assistant:
        raise DataError(
            f"{place}: a conversation needs a user message and ends with an assistant message, "
            f"got {_names(roles)}"
        )
    return turns


_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant"}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_FOR_THE_TEMPLATE = ("tool_calls", "tool_call_id", "name", *_REASONING)
_WEIGHTS = ("weight", "train", "loss")
_NOT_KNOWN_HERE = (
    *("function_call", "refusal", "prefix", "audio", "image", "images", "video"),
    *("loss_mask", "trainable", "training", "train_detail", "masked", "mask"),
)
"""Keys that change what a message means and that nothing here honours."""
_NOT_KNOWN_OF_ROWS = ("history", "images", "image", "audios", "videos")
"""Columns that belong to the conversation of a row and that nothing here honours."""


def _turn(message: object, place: str) -> Turn:
    """Return one message, OpenAI's `role` and `content` or ShareGPT's `from` and `value`."""
    if not isinstance(message, dict):
        raise DataError(f"{place}: needs 'role' and 'content', got {_kind(message)}")
    role, content = (
        message.get(a, message.get(b)) for a, b in (("role", "from"), ("content", "value"))
    )
    if role is None or (content is None and "tool_calls" not in message):
        given = f"columns {', '.join(map(str, message))}"
        raise DataError(f"{place}: needs 'role' and 'content' (or 'from' and 'value'), got {given}")
    if isinstance(role, str):
        role = _SHAREGPT_ROLES.get(role, role)
    if not isinstance(role, str) or role not in Role.__members__:
        raise DataError(f"{place}: role must be one of {_names(Role)}, got {role!r}")
    content = "" if content is None else content
    if not isinstance(content, str):
        raise DataError(f"{place}: content must be a string, got {_kind(content)}")
    for key in _NOT_KNOWN_HERE:
        if message.get(key) not in (None, False):
            raise DataError(
                f"{place}: '{key}' is not supported here; leave the message or the key out"
            )
    further = {
        key: message[key] for key in _FOR_THE_TEMPLATE if message.get(key) not in (None, "", [])
    }
    return Turn(
        Role[role],
        _whole(content, place),
        carries_loss=_carries_loss(message, Role[role], place) and bool(content.strip() or further),
        further=_whole(json.dumps(further, ensure_ascii=False), place) if further else "",
    )


def _carries_loss(message: Mapping[str, Any], role: Role, place: str) -> bool:
    """Return what `weight` (0 or 1) or `train` says of a message; without them answers are learned."""
    for key in _WEIGHTS:
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise DataError(
                f"{place}: '{key}' must be 0 or 1 (learned or not), got {_kind(value)}; weights in between "
                "are not supported"
            )
        if value and role is not Role.assistant:
            raise DataError(
                f"{place}: '{key}' asks to learn a {role.value} message; only answers are learned, or all of "
                "a row by data.loss_on=all"
            )
        return bool(value)
    return True


def _whole(text: str, place: str) -> str:
    """Refuse half of a character, which JSON can write (`\\ud83d` alone) and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise DataError(
            f"{place}: {half} at character {error.start} is half of a character; write the whole pair"
        ) from None
    return text


def _names(roles: Iterable[Role]) -> str:
    return ", ".join(role.value for role in roles)


def _kind(value: object) -> str:
    """Say what `value` is in JSON's words, with the value where it is short."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return f"the {'boolean' if isinstance(value, bool) else 'number'} {value}"
        case str():
            return f"the string {value[:40]!r}"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with {', '.join(map(str, value)) or 'no columns'}"
        case _:
            return type(value).__name__
