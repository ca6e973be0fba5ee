"""Chat templates as models come with them: where each answer stands, what carries loss, and on which day.

Answers that another turn changes: modelscope/ms-swift#4939 and #9829, huggingface/trl#6361, THUDM/slime#330.
A clock in the prompt: sgl-project/sglang#3296, oobabooga/textgen#6692.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config.schema import DataConfig, DataForm, Template
from harness.data.chat_template import answer_end
from harness.data.example import Example, Role, Turn
from harness.data.templates import prompt_ids, render, trained_answer
from harness.errors import DataError
from tests.random_models import save_byte_tokenizer

PHI_3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_3 = (  # its last turn opens with a thought, also an empty one; earlier ones lose theirs
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start|>' + m.role + '<|stop|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
WITH_A_CLOCK = (
    "{% if strftime_now is defined %}{{ 'Today: ' + strftime_now('%d %b %Y, %A') + '\n' }}{% endif %}"
    + PHI_3
)
TEMPLATES = {"phi_3": PHI_3, "qwen_3": QWEN_3, "llama_3": LLAMA_3, "mistral": MISTRAL}
CONFIG = DataConfig(path="x", form=DataForm.messages, template=Template.tokenizer)
TOKENS = [
    f"<|{name}|>"
    for name in ["user", "assistant", "end", "im_start", "im_end", "start", "stop", "eot"]
]


@pytest.fixture
def with_template(tmp_path: Path) -> Callable[[str], Any]:
    """Return a function that gives a byte tokenizer a template; EOS is a token of its own."""
    from transformers import AutoTokenizer

    save_byte_tokenizer(tmp_path)
    made: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    made.add_special_tokens({"additional_special_tokens": TOKENS})

    def give(template: str) -> Any:
        made.chat_template = template
        answer_end.cache_clear()
        return made

    return give


def conversation(*answers: str) -> Example:
    turns: list[Turn] = []
    for number, answer in enumerate(answers):
        turns += [Turn(Role.user, f"Zebra {number}?"), Turn(Role.assistant, answer)]
    return Example(turns=tuple(turns))


def learned(example: Example, tokenizer: Any) -> list[str]:
    """Return each answer that carries loss, with what ends it."""
    found = [""]
    for piece in render(example, CONFIG, tokenizer):
        if piece.carries_loss:
            found[-1] += piece.text
        elif found[-1]:
            found.append("")
    return [text for text in found if text]


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("phi_3", ["one<|end|>", "a<|end|>", "three<|end|>\n</s>"]),
        ("qwen_3", ["one<|im_end|>", "a<|im_end|>", "three<|im_end|></s>"]),
        ("llama_3", ["one<|eot|>", "a<|eot|>", "three<|eot|></s>"]),
        ("mistral", [" one</s>", " a</s>", " three</s>"]),
    ],
)
def test_every_answer_of_a_conversation_is_learned_with_what_ends_it(
    name: str, answers: list[str], with_template: Callable[[str], Any]
):
    tokenizer = with_template(TEMPLATES[name])
    assert learned(conversation("one", "a", "three"), tokenizer) == answers


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_row_is_what_the_template_renders_and_begins_with_its_generation_prompt(
    name: str, with_template: Callable[[str], Any]
):
    tokenizer = with_template(TEMPLATES[name])
    example = conversation("one\n two", "a", "three")
    row = "".join(piece.text for piece in render(example, CONFIG, tokenizer))
    messages = [turn.message() for turn in example.turns]
    whole, prompt = (
        tokenizer.apply_chat_template(
            given, tokenize=False, add_generation_prompt=opens, enable_thinking=False
        )
        for given, opens in ((messages, False), (messages[:-1], True))
    )
    assert row.removeprefix("<s>").startswith(whole.removeprefix("<s>").rstrip())
    shown = tokenizer.decode(prompt_ids(example, CONFIG, tokenizer))
    assert shown.removeprefix("<s>") == prompt.removeprefix("<s>")


def test_thoughts_that_a_template_takes_out_of_earlier_answers_are_counted(
    with_template: Callable[[str], Any],
):
    tokenizer = with_template(QWEN_3)
    pieces = render(conversation("<think>hm</think>\n\none", "two"), CONFIG, tokenizer)
    assert [piece.text for piece in pieces if piece.is_changed] == ["one<|im_end|>"]
    assert trained_answer(conversation("x", " two\n"), CONFIG, tokenizer).strip() == "two"


def test_white_space_around_an_answer_changes_nothing(with_template: Callable[[str], Any]):
    pieces = render(conversation(" one \n", "\ttwo"), CONFIG, with_template(LLAMA_3))
    assert not any(piece.is_changed for piece in pieces)


def test_a_template_with_a_clock_shows_the_same_day_every_day(with_template: Callable[[str], Any]):
    tokenizer = with_template(WITH_A_CLOCK)
    pieces = render(conversation("one", "two"), CONFIG, tokenizer)
    text = "".join(piece.text for piece in pieces).removeprefix("<s>")
    assert text.startswith("Today: 01 Jan 2025, Wednesday\n<|user|>\nZebra 0?<|end|>\n")
    shown = tokenizer.decode(prompt_ids(conversation("one"), CONFIG, tokenizer))
    assert shown.startswith("<s>Today: 01 Jan 2025")


def test_a_prompt_that_no_answered_turn_begins_with_is_refused(with_template: Callable[[str], Any]):
    """DeepSeek R1's distilled models open a thought that no finished answer shows."""
    opens = PHI_3.replace("'<|assistant|>\n' }}{% else", "'<|assistant|>\n<think>\n' }}{% else")
    with pytest.raises(DataError, match=r"differently from its generation prompt") as refused:
        render(conversation("one"), CONFIG, with_template(opens))
    shown = "<think>\\n', row has '>\\nZebra 0?<|end|>\\n<|assistant|>\\none<|end|>\\n</s>')"
    assert shown in str(refused.value)  # 40 characters of each before the place, and 40 behind it
    assert str(refused.value).endswith("use data.template=chatml")
