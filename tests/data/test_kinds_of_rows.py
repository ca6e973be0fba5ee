"""Rows as people have them: a key that changes what a message means is used or refused by name.

Weights: axolotl-ai-cloud/axolotl#1702, verl-project/verl#5316, hiyouga/LlamaFactory#9630. Tool calls dropped
in silence: axolotl-ai-cloud/axolotl#3824, huggingface/transformers#45419. Templates that change answers:
huggingface/trl#6361, modelscope/ms-swift#4939, axon-rl/gem#44. Half characters:
huggingface/transformers#43459, #8886.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config.schema import DataConfig, DataForm, LossOn, Template
from harness.data.prepare import prepare_data
from harness.data.rows import NO_LOSS
from harness.data.templates import prompt_ids, stop_ids, trained_answer, turn_end
from harness.errors import DataError
from tests.random_models import save_byte_tokenizer
from tests.real_cases import write_rows

CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]

WITH_TOOLS = (
    "{% if tools %}[tools {{ tools | tojson }}]{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% if m.tool_calls %}<call>{{ m.tool_calls | tojson }}</call>{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS_THOUGHTS = PLAIN.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """A byte tokenizer with chatml's and the templates' tokens, by which text can be read back exactly."""
    from transformers import AutoTokenizer

    save_byte_tokenizer(tmp_path / "tokenizer")
    made: Any = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    made.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|end|>"]}
    )
    return made


def chat(*turns: tuple[str, str] | dict[str, Any], **columns: Any) -> dict[str, Any]:
    messages = [t if isinstance(t, dict) else {"role": t[0], "content": t[1]} for t in turns]
    return {"messages": messages, **columns}


def learned(tokenizer: Any, tmp_path: Path, rows: list[Any], **fields: Any) -> list[str]:
    """Return the text of each training row that carries loss."""
    path = write_rows(tmp_path / "rows.jsonl", rows)
    settings: dict[str, Any] = {"form": DataForm.messages, "template": Template.chatml, **fields}
    config = DataConfig(path=str(path), validation_rows=0, test_rows=0, max_length=1024, **settings)
    prepared = prepare_data(config, tokenizer, "byte", tmp_path / "cache")
    targets = prepared.train.targets_NT
    return [tokenizer.decode(row[row != NO_LOSS]) for row in targets]


TURNS = (
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "WRONG", "weight": 0},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "right", "weight": 1},
)


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize("loss_on", [LossOn.response, LossOn.all])
def test_an_answer_of_weight_zero_is_not_learned(
    key: str, loss_on: LossOn, tokenizer: Any, tmp_path: Path
):
    turns = [
        {("weight" if k != "weight" else key) if k == "weight" else k: v for k, v in t.items()}
        for t in TURNS
    ]
    (text,) = learned(tokenizer, tmp_path, [chat(*turns)], loss_on=loss_on)
    assert "WRONG" not in text
    assert "right<|im_end|>" in text
    assert ("again" in text) is (loss_on is LossOn.all)


def test_sharegpt_messages_and_their_weights_are_read(tokenizer: Any, tmp_path: Path):
    turns = [
        {"from": "human", "value": "one?"},
        {"from": "gpt", "value": "WRONG", "weight": 0},
        {"from": "human", "value": "again"},
        {"from": "gpt", "value": "right"},
    ]
    row = {"conversations": turns, "system": "Be kind, and brief."}
    (text,) = learned(tokenizer, tmp_path, [row], messages_column="conversations")
    assert text == "right<|im_end|></s>"
    (whole,) = learned(
        tokenizer, tmp_path, [row], messages_column="conversations", loss_on=LossOn.all
    )
    assert "<|im_start|>system\nBe kind, and brief.<|im_end|>" in whole


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"weight": 0.5}, "'weight' must be 0 or 1"),
        ({"weight": "0"}, "'weight' must be 0 or 1"),
        ({"function_call": {"name": "f"}}, "'function_call' is not supported"),
        ({"images": ["a.png"]}, "'images' is not supported"),
        ({"train_detail": [{"begin_offset": 0}]}, "'train_detail' is not supported"),
        ({"content": [{"type": "text", "text": "b"}]}, "content must be a string, got a list"),
        ({"content": 3}, "content must be a string, got the number 3"),
        ({"content": "\ud83d"}, "half of a character"),
        ({"role": ["assistant"]}, "role must be one of"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_line(
    message: dict[str, Any], says: str, tokenizer: Any, tmp_path: Path
):
    rows = [chat(("user", "a"), ("assistant", "b"))]
    rows.append(chat(("user", "a"), {"role": "assistant", "content": "b"} | message))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*" + says):
        learned(tokenizer, tmp_path, rows)


def test_a_conversation_without_anything_to_learn_is_refused(tokenizer: Any, tmp_path: Path):
    row = chat(("user", "a"), {"role": "assistant", "content": "b", "train": False})
    with pytest.raises(DataError, match="nothing is left to learn"):
        learned(tokenizer, tmp_path, [row])


def test_a_weight_on_a_question_is_refused(tokenizer: Any, tmp_path: Path):
    row = chat({"role": "user", "content": "a", "weight": 1}, ("assistant", "b"))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: message 1: 'weight' asks to learn a user"):
        learned(tokenizer, tmp_path, [row])


CALLING = chat(
    ("user", "what is the weather"),
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    ("tool", "rain"),
    ("assistant", "It rains."),
    tools=TOOLS,
)


def test_tool_calls_are_rendered_by_templates_that_support_them(tokenizer: Any, tmp_path: Path):
    tokenizer.chat_template = WITH_TOOLS
    (text,) = learned(tokenizer, tmp_path, [CALLING], template=Template.tokenizer)
    assert text.startswith('<call>[{"type": "function"')
    assert text.count("<|end|>") == 2
    assert text.endswith("It rains.<|end|></s>")
    (whole,) = learned(
        tokenizer, tmp_path, [CALLING], template=Template.tokenizer, loss_on=LossOn.all
    )
    assert "[tools [{" in whole
    last = chat(("user", "q"), {"role": "assistant", "content": None, "tool_calls": CALLS})
    (text,) = learned(tokenizer, tmp_path, [last], template=Template.tokenizer)
    assert text.startswith("<call>")


def test_templates_without_words_for_them_are_refused_by_name(tokenizer: Any, tmp_path: Path):
    with pytest.raises(DataError, match=r"chatml cannot render role tool, tool_calls, tools"):
        learned(tokenizer, tmp_path, [CALLING])
    tokenizer.chat_template = PLAIN
    with pytest.raises(DataError, match="passes over 'tool_calls'"):
        learned(tokenizer, tmp_path, [CALLING], template=Template.tokenizer)
    thought = chat(("user", "q"), {"role": "assistant", "content": "a", "reasoning_content": "hm"})
    with pytest.raises(DataError, match="passes over 'reasoning_content'"):
        learned(tokenizer, tmp_path, [thought], template=Template.tokenizer)
    hmm = chat(("user", "q"), {"role": "assistant", "content": "a", "thinking": "hm"})
    with pytest.raises(DataError, match="passes over 'thinking'"):
        learned(tokenizer, tmp_path, [hmm], template=Template.tokenizer)
    tokenizer.chat_template = WITH_TOOLS
    (text,) = learned(tokenizer, tmp_path, [thought], template=Template.tokenizer)
    assert text == "<think>hm</think>a<|end|></s>"


def test_what_is_passed_over_is_refused_beside_what_is_rendered(tokenizer: Any, tmp_path: Path):
    calls = "{% if m.tool_calls %}<call>{{ m.tool_calls | tojson }}</call>{% endif %}"
    tokenizer.chat_template = WITH_TOOLS.replace(calls, "")
    both = {"reasoning_content": "hm", "tool_calls": CALLS}
    row = chat(("user", "q"), {"role": "assistant", "content": "a", **both})
    with pytest.raises(DataError, match="passes over 'tool_calls'"):
        learned(tokenizer, tmp_path, [row], template=Template.tokenizer)


def test_an_empty_answer_in_the_middle_is_no_answer_to_learn(tokenizer: Any, tmp_path: Path):
    row = chat(("user", "q"), ("assistant", ""), ("user", "4"), ("assistant", "four"))
    assert learned(tokenizer, tmp_path, [row]) == ["four<|im_end|></s>"]


def test_answers_that_the_template_changes_are_counted_or_refused(tokenizer: Any, tmp_path: Path):
    tokenizer.chat_template = DROPS_THOUGHTS
    rows = [
        chat(("user", "q"), ("assistant", "<think>hm</think>yes")),
        chat(("user", "q2"), ("assistant", "no")),
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    config = DataConfig(
        path=str(path),
        form=DataForm.messages,
        template=Template.tokenizer,
        validation_rows=0,
        test_rows=0,
    )
    prepared = prepare_data(config, tokenizer, "byte", tmp_path / "cache")
    assert prepared.report.as_dict()["splits"]["train"]["changed"] == 1
    answers = [trained_answer(example, config, tokenizer) for example in prepared.splits.train]
    assert sorted(answers) == ["no", "yes"]
    with pytest.raises(DataError, match=r"data\.strict=true: 1 of 2 train examples"):
        learned(tokenizer, tmp_path, rows, template=Template.tokenizer, strict=True)


@pytest.mark.parametrize(
    ("template", "end"), [(Template.chatml, "<|im_end|>"), (Template.tokenizer, "<|end|>")]
)
def test_what_ends_a_turn_stops_generation_and_is_no_part_of_the_reference(
    template: Template, end: str, tokenizer: Any
):
    from harness.data.example import pair

    tokenizer.chat_template = PLAIN
    config = DataConfig(path="x", template=template)
    example = pair("q", "the answer")
    assert turn_end(config, tokenizer) == end
    assert tokenizer.convert_tokens_to_ids(end) in stop_ids(config, tokenizer)
    assert trained_answer(example, config, tokenizer) == "the answer"
    assert tokenizer.decode(prompt_ids(example, config, tokenizer))


@pytest.mark.parametrize(("end", "is_one"), [("!", True), ("end", False)])
def test_only_one_token_of_its_own_ends_a_turn(end: str, is_one: bool, tokenizer: Any):
    tokenizer.chat_template = PLAIN.replace("<|end|>", end)
    found = stop_ids(DataConfig(path="x", template=Template.tokenizer), tokenizer)
    first, *more = tokenizer.encode(end, add_special_tokens=False)
    assert (not more) is is_one
    assert (first in found) is is_one


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"history": [["q0", "a0"]]}, r"rows\.jsonl:2: column 'history' is not supported"),
        ({"images": ["a.png"]}, r"rows\.jsonl:2: column 'images' is not supported"),
        ({"tools": TOOLS}, "plain cannot render tools"),
    ],
)
@pytest.mark.parametrize("form", [DataForm.pairs, DataForm.messages])
def test_columns_that_belong_to_a_conversation_are_not_passed_over(
    columns: dict[str, Any], says: str, form: DataForm, tokenizer: Any, tmp_path: Path
):
    rows: list[dict[str, Any]] = [
        chat(("user", "q"), ("assistant", "a"), prompt="q", response="a", history=[], images=None),
        chat(("user", "q2"), ("assistant", "a"), prompt="q2", response="a", **columns),
    ]
    with pytest.raises(DataError, match=says):
        learned(tokenizer, tmp_path, rows, form=form, template=Template.plain)


def test_a_pairs_system_column_is_a_system_message_or_refused(tokenizer: Any, tmp_path: Path):
    rows = [{"prompt": "q", "response": "a", "system": "Be kind."}]
    (whole,) = learned(tokenizer, tmp_path, rows, form=DataForm.pairs, loss_on=LossOn.all)
    assert "system\nBe kind.<|im_end|>" in whole
    with pytest.raises(DataError, match="alpaca cannot render a system message"):
        learned(tokenizer, tmp_path, rows, form=DataForm.pairs, template=Template.alpaca)


@pytest.mark.parametrize(
    "line", ['{"prompt": "\\ud83d", "response": "b"}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_lines_that_are_no_text_are_named(line: str, tokenizer: Any, tmp_path: Path):
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n" + line + "\n")
    config = DataConfig(path=str(path), form=DataForm.pairs, validation_rows=0, test_rows=0)
    with pytest.raises(DataError, match=r"odd\.jsonl:2: "):
        prepare_data(config, tokenizer, "byte", tmp_path / "cache")
