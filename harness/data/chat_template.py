"""A model's own chat template: what it renders of a conversation, and where each answer stands in that.

Imports no torch of its own.
"""

import json
import re
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from harness.data.example import Exchange, Role, Turn
from harness.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own_template(
    turns: list[Turn], tools: str, tokenizer: "PreTrainedTokenizerBase"
) -> list[Exchange]:
    """Render with the model's chat template: each answer is what it adds to its generation prompt.

    White space after the answer's end token belongs to what follows, and is left out at the row's end.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"data.template=tokenizer, but the tokenizer of {tokenizer.name_or_path or 'the model'} has no "
            "chat template; use data.template=chatml, alpaca or plain"
        )
    _check_that_all_is_rendered(turns, tools, tokenizer)
    *earlier, last = turns
    opened = _apply(earlier, tools, tokenizer, open_answer=True)
    closed = _apply(turns, tools, tokenizer, open_answer=False)
    if not closed.startswith(opened):
        raise _rendered_otherwise(opened, closed)
    exchanges: list[Exchange] = []
    done = 0
    for index, turn in enumerate(earlier):
        if turn.role is Role.assistant:
            start, stop, text = _place_of(index, earlier, opened, tools, tokenizer)
            if start < done:
                raise _rendered_otherwise(opened[:start], opened)
            changed = text is not None and text.strip() != turn.text.strip()
            given, answer = opened[done:start], opened[start:stop]
            exchanges.append(Exchange(given, answer, turn.carries_loss, changed))
            done = stop
    answer = closed[len(opened) :].rstrip()
    changed = not last.further and _without_end(answer, tokenizer) != last.text.strip()
    return [*exchanges, Exchange(opened[done:], answer, last.carries_loss, changed)]


def _rendered_otherwise(opened: str, closed: str) -> DataError:
    return DataError(
        "data.template=tokenizer: this chat template renders an answered turn differently from its "
        "generation prompt, so a training row would not start with the prompt that is generated "
        f"from (prompt ends {opened[-40:]!r}, row has {closed[len(opened) - 40 :][:80]!r}); use "
        "data.template=chatml"
    )


def _place_of(
    index: int,
    turns: list[Turn],
    opened: str,
    tools: str,
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[int, int, str | None]:
    """Return where an answer begins and ends in `opened`, a conversation that goes on after it, and its text.

    It begins after its own generation prompt, where that stands there. Templates may render an answer
    otherwise once another turn follows: Phi-3's ends the last one with EOS, too, and Qwen 3's leaves thoughts
    out of earlier ones. So its text is found by a mark in its place; of one that calls tools it is None.
    """
    turn = turns[index]
    prompt = _apply(turns[:index], tools, tokenizer, open_answer=True)
    if turn.further:
        whole = _apply(turns[: index + 1], tools, tokenizer, open_answer=False).rstrip()
        if not (whole.startswith(prompt) and opened.startswith(whole)):
            raise _rendered_otherwise(prompt, opened)
        return len(prompt), len(whole), None
    mark = _MARK
    while mark in opened:
        mark += _MARK[-1]
    marked = [*turns[:index], replace(turn, text=mark), *turns[index + 1 :]]
    rendered = _apply(marked, tools, tokenizer, open_answer=True)
    before, found, after = rendered.partition(mark)
    stop = len(opened) - len(after)
    if not (found and len(before) <= stop and opened.startswith(before) and opened.endswith(after)):
        raise _rendered_otherwise(before, opened)
    text, end = opened[len(before) : stop], _common_end(after, tokenizer)
    start = len(prompt) if before.startswith(prompt) else len(before)
    if not end:  # white space then belongs to what follows
        stop = start + len(opened[start:stop].rstrip())
    return start, stop + len(end), text


_MARK = "Zebra"
"""An answer that no template adds anything to."""


def _common_end(after: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what ends an answer also where another turn follows, in whole special tokens."""
    pattern = "|".join(re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values())
    parts = re.split(f"({pattern})", answer_end(tokenizer)) if pattern else [answer_end(tokenizer)]
    end = ""
    for part in parts:
        if not after.startswith(end + part):
            break
        end += part
    return end.rstrip()


def _without_end(answer: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    return answer.removesuffix(answer_end(tokenizer)).strip()


@lru_cache(maxsize=8)
def answer_end(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what the model's chat template writes after an answer to end the turn."""
    turns = [Turn(Role.user, "?"), Turn(Role.assistant, _MARK)]
    return _apply(turns, "", tokenizer, open_answer=False).rpartition(_MARK)[2].strip()


def _check_that_all_is_rendered(
    turns: list[Turn], tools: str, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Refuse a chat template that passes over tools, tool calls or other keys of a message."""
    if not tools and not any(turn.further for turn in turns):
        return
    whole = _apply(turns, tools, tokenizer, open_answer=False)
    for number, turn in enumerate(turns):
        for key in json.loads(turn.further) if turn.further else ():
            left = {k: v for k, v in json.loads(turn.further).items() if k != key}
            without = [*turns]
            without[number] = replace(turn, further=json.dumps(left) if left else "")
            if _apply(without, tools, tokenizer, open_answer=False, may_fail=True) == whole:
                raise _passed_over(key, turn)
    if tools and _apply(turns, "", tokenizer, open_answer=False, may_fail=True) == whole:
        raise _passed_over("tools", turns[0])


def _passed_over(key: str, turn: Turn) -> DataError:
    return DataError(
        f"data.template=tokenizer: this model's chat template passes over '{key}' of a {turn.role.value} "
        f"message ({turn.text[:40]!r}); use a model whose template renders it, or leave it out"
    )


_TODAY = {"%d": "01", "%b": "Jan", "%B": "January", "%m": "01", "%Y": "2025", "%y": "25", "%A": "Wednesday",
          "%a": "Wed", "%j": "001", "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM"}  # fmt: skip
"""Every day's date, as `strftime` would write it."""


def _dated(template: str) -> str:
    """Return a chat template in which it is always the same day: a macro takes the place of the clock."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f" | replace('{code}', '{text}')" for code, text in _TODAY.items())
    return f"{{%- macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"


def _apply(
    turns: list[Turn],
    tools: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    open_answer: bool,
    may_fail: bool = False,
) -> str:
    """Return the chat template's text of `turns`, with the start of an answer if `open_answer`.

    `enable_thinking=False` is Qwen3's switch: it puts the empty thought, which an answered turn contains,
    into the generation prompt too. Other templates do not read it. Where a template asks for today's date, as
    Llama 3.2's and gpt-oss's do, it is told another: a run must not depend on the day.
    """
    messages = [turn.message() for turn in turns]
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=json.loads(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=open_answer,
            enable_thinking=False,
            chat_template=_dated(tokenizer.get_chat_template(tools=json.loads(tools or "null"))),
        )
    except (
        Exception
    ) as error:  # a template is its author's program, in a sandbox, and raises anything
        if may_fail:
            return ""
        roles = ", ".join(turn.role.value for turn in turns)
        raise DataError(
            f"data.template=tokenizer: the chat template refuses a conversation of {roles}: {error}; use "
            "data.template=chatml"
        ) from error
    assert isinstance(text, str)
    return text
