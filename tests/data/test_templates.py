"""Rendered rows: their wording, what carries loss, and that generation starts as training does."""

from dataclasses import replace
from itertools import islice

import pytest

from harness.config.schema import DataConfig, DataForm, LossOn, Template
from harness.data.example import Example, Piece, Role, Turn, pair
from harness.data.files import read_file
from harness.data.records import RecordForm
from harness.data.templates import prompt_ids, render
from harness.data.tokenize import encode
from harness.embedded import corpus
from harness.errors import DataError

QUESTION = pair("What is the colour of the sky?", "The sky is blue.")
WITH_INPUT = pair("Name the colour.", "blue", "the sky at noon")
CHAT = Example(
    turns=(
        Turn(Role.system, "Be brief."),
        Turn(Role.user, "What is the colour?"),
        Turn(Role.assistant, "blue"),
        Turn(Role.user, "At noon?"),
        Turn(Role.assistant, "The sky is blue."),
    )
)


def _config(template: Template, **changes) -> DataConfig:
    return DataConfig(template=template, **changes)


def _text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _learned(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.carries_loss]


def test_alpaca_is_stanford_alpacas_wording(spm_tokenizer):
    """Copied from stanford_alpaca/train.py: PROMPT_DICT[...].format_map(row) + output + eos."""
    config = _config(Template.alpaca)
    assert _text(render(QUESTION, config, spm_tokenizer)) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nWhat is the colour of the sky?\n\n"
        "### Response:The sky is blue.</s>"
    )
    assert _text(render(WITH_INPUT, config, spm_tokenizer)) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName the colour.\n\n### Input:\nthe sky at noon\n\n"
        "### Response:blue</s>"
    )


def test_alpaca_leaves_braces_in_the_data_alone(spm_tokenizer):
    example = pair("Write {instruction} as {0}", "{input}")
    text = _text(render(example, _config(Template.alpaca), spm_tokenizer))
    assert "### Instruction:\nWrite {instruction} as {0}\n\n### Response:{input}</s>" in text


def test_plain_is_prompt_newline_response(spm_tokenizer, byte_tokenizer):
    config = _config(Template.plain)
    text = "Name the colour.\nthe sky at noon\nblue"
    assert _text(render(WITH_INPUT, config, spm_tokenizer)) == f"<s>{text}</s>"
    assert _text(render(WITH_INPUT, config, byte_tokenizer)) == f"{text}<|endoftext|>"


def test_plain_conversation_has_a_turn_per_line_and_learns_the_answers(byte_tokenizer):
    pieces = render(CHAT, _config(Template.plain), byte_tokenizer)
    end = "<|endoftext|>"
    assert _text(pieces) == (
        f"Be brief.\nWhat is the colour?\nblue{end}At noon?\nThe sky is blue.{end}"
    )
    assert _learned(pieces) == ["blue", end, "The sky is blue.", end]


def test_chatml_ends_turns_with_its_own_token_and_rows_with_eos(byte_tokenizer):
    pieces = render(CHAT, _config(Template.chatml, system="unused"), byte_tokenizer)
    assert _text(pieces) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is the colour?<|im_end|>\n"
        "<|im_start|>assistant\nblue<|im_end|>\n"
        "<|im_start|>user\nAt noon?<|im_end|>\n"
        "<|im_start|>assistant\nThe sky is blue.<|im_end|><|endoftext|>"
    )
    expected = ["blue", "<|im_end|>", "The sky is blue.", "<|im_end|>", "<|endoftext|>"]
    assert _learned(pieces) == expected


def test_chatml_without_its_tokens_ends_a_response_with_eos(spm_tokenizer):
    pieces = render(QUESTION, _config(Template.chatml, system="Be brief."), spm_tokenizer)
    assert _text(pieces) == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is the colour of the sky?<|im_end|>\n"
        "<|im_start|>assistant\nThe sky is blue.</s>"
    )
    assert _learned(pieces) == ["The sky is blue.", "</s>"]


def test_loss_on_all_learns_every_piece(byte_tokenizer):
    pieces = render(QUESTION, _config(Template.plain, loss_on=LossOn.all), byte_tokenizer)
    assert all(piece.carries_loss for piece in pieces)
    assert _text(pieces) == _text(render(QUESTION, _config(Template.plain), byte_tokenizer))


def test_a_text_ends_only_where_it_is_complete(spm_tokenizer):
    config = DataConfig(form=DataForm.text)
    assert _text(render(Example(text="One day"), config, spm_tokenizer)) == "<s>One day</s>"
    goes_on = Example(text="One day", complete=False)
    assert _text(render(goes_on, config, spm_tokenizer)) == "<s>One day"


@pytest.mark.parametrize(
    "example", [QUESTION, CHAT, pair("Is it?", "It is a.")], ids=["pair", "chat", "short word"]
)
def test_the_tokenizers_template_gives_the_tokens_and_mask_of_transformers(example, byte_tokenizer):
    """Against apply_chat_template's own tokens and its mask of the assistant's tokens."""
    messages = [{"role": turn.role.value, "content": turn.text} for turn in example.turns]
    expected = byte_tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = expected["input_ids"], expected["assistant_masks"]
    newline = byte_tokenizer("\n")["input_ids"]
    assert ids[-1:] == newline  # ours ends with the end of the turn and EOS instead
    ids, mask = [*ids[:-1], byte_tokenizer.eos_token_id], [*mask[:-1], 1]
    (row,) = encode([example], _config(Template.tokenizer), byte_tokenizer).rows
    assert row.ids == ids
    learned = [token if flag else -100 for token, flag in zip(ids, mask, strict=True)]
    assert row.targets == [*learned[1:], -100]
    prompt = byte_tokenizer.apply_chat_template(
        messages[:-1], tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"]
    assert prompt_ids(example, _config(Template.tokenizer), byte_tokenizer) == prompt


def test_a_template_that_writes_bos_and_eos_is_not_given_them_again(spm_tokenizer):
    """Llama 2's template, shortened."""
    tokenizer = _with_template(
        spm_tokenizer,
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + "
        "' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    )
    text = _text(render(QUESTION, _config(Template.tokenizer), tokenizer))
    question, answer = QUESTION.turns[0].text, QUESTION.response
    assert text == f"<s>[INST] {question} [/INST] {answer} </s>"


def test_an_empty_thought_is_part_of_the_prompt(byte_tokenizer):
    """Qwen3's template, shortened: it thinks unless told not to."""
    tokenizer = _with_template(
        byte_tokenizer,
        "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' and loop.last %}"
        "{{ '<think></think>' }}{% endif %}{{ m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% if enable_thinking is false %}"
        "{{ '<think></think>' }}{% endif %}{% endif %}",
    )
    pieces = render(QUESTION, _config(Template.tokenizer), tokenizer)
    assert _learned(pieces) == ["The sky is blue.", "<|endoftext|>"]


def test_a_template_that_cannot_be_followed_is_refused(byte_tokenizer, spm_tokenizer):
    config = _config(Template.tokenizer)
    with pytest.raises(DataError, match=r"no chat template; use data\.template=chatml"):
        render(QUESTION, config, spm_tokenizer)
    changing = _with_template(
        byte_tokenizer,
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Your turn:' }}{% endif %}",
    )
    with pytest.raises(DataError, match="renders an answered turn differently"):
        render(QUESTION, config, changing)
    refusing = _with_template(byte_tokenizer, "{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match=r"refuses a conversation of system, user.*no system role"):
        render(CHAT, config, refusing)


def test_a_tokenizer_without_an_end_is_refused(byte_tokenizer):
    tokenizer = _copy(byte_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        render(QUESTION, _config(Template.plain), tokenizer)


def _copy(tokenizer):
    import copy

    return copy.deepcopy(tokenizer)


def _with_template(tokenizer, template: str):
    changed = _copy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize("loss_on", LossOn)
@pytest.mark.parametrize("template", Template)
@pytest.mark.parametrize("tokenizer_name", ["spm_tokenizer", "byte_tokenizer"])
def test_the_prompt_is_the_start_of_the_row_and_the_rest_decodes_to_the_response(
    request, tokenizer_name, template, loss_on
):
    """For every template on both kinds of tokenizer."""
    tokenizer = request.getfixturevalue(tokenizer_name)
    if template is Template.tokenizer:
        tokenizer = _with_template(
            tokenizer, request.getfixturevalue("byte_tokenizer").chat_template
        )
        if tokenizer_name == "spm_tokenizer":
            template_text = tokenizer.chat_template.replace("<|im_end|>", "</s>")
            tokenizer.chat_template = template_text
    config = DataConfig(template=template, loss_on=loss_on, max_length=512)
    examples = [QUESTION, WITH_INPUT, pair("a\n", "b\n\nc"), pair("x ", " y z")]
    if template is not Template.alpaca:
        examples.append(CHAT)
    for row in encode(examples, config, tokenizer).rows:
        example = examples[row.source]
        prompt = prompt_ids(example, config, tokenizer)
        assert row.ids[: len(prompt)] == prompt
        if template is not Template.tokenizer and tokenizer.bos_token_id is not None:
            assert prompt.count(tokenizer.bos_token_id) == 1
        generated = row.ids[len(prompt) :]
        assert generated[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in generated[:-1]
        decoded = tokenizer.decode(generated, skip_special_tokens=True)
        assert decoded.strip() == example.response.strip()
        assert row.targets[len(prompt) - 1 : -1] == generated
        if loss_on is LossOn.response and len(example.turns) == 2:
            assert set(row.targets[: len(prompt) - 1]) == {-100}


def test_responses_come_back_from_their_tokens(write_jsonl, spm_tokenizer):
    documents = islice(corpus.documents(corpus.Part.HELD_OUT, seed=4), 200)
    raw = [
        {"instruction": d.prompt, "input": "", "output": f"{d.response}\n\n — 数 {i}"}
        for i, d in enumerate(documents)
        if d.prompt is not None
    ]
    path = write_jsonl(raw)
    config = DataConfig(
        prompt_column="instruction",
        input_column="input",
        response_column="output",
        template=Template.alpaca,
        max_length=100_000,
    )
    examples = read_file(path, RecordForm.of(config), "data.path").examples
    rows = encode(examples, config, spm_tokenizer).rows
    for row, original in zip(rows, raw, strict=True):
        learned = [token for token in row.targets if token != -100]
        decoded = spm_tokenizer.decode(learned, skip_special_tokens=True)
        assert decoded.strip() == original["output"].strip()
    all_loss = encode(examples, replace(config, loss_on=LossOn.all), spm_tokenizer).rows
    assert all(row.targets == [*row.ids[1:], -100] for row in all_loss)
