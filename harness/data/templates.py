"""The text around prompt and response, and which of it carries loss. Imports no torch of its own.

A row is a list of pieces, and each piece is tokenized on its own. That makes the boundary between prompt
and response a token boundary with any tokenizer, so the tokens of a prompt at generation time
(`prompt_ids`) are the first tokens of its training row. The price, with tokenizers that put a space in
front of what they encode (SentencePiece and its like): a response starts with that space, whatever the
prompt ends with. Training and generation agree on it, and decoding the generated tokens gives the
response back after `strip()`. Byte-level tokenizers add nothing.

Text of the data is tokenized as it is: where it spells a special token, it becomes that token, as with
`transformers` and TRL.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from harness.config.schema import DataConfig, LossOn, Template
from harness.data.chat_template import answer_end, own_template
from harness.data.example import Example, Exchange, Piece, Role, Turn
from harness.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ALPACA = (  # Taori et al. 2023, Stanford Alpaca, train.py: PROMPT_DICT["prompt_no_input"]
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_ALPACA_INPUT = (  # the same, PROMPT_DICT["prompt_input"]
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_CHATML_START, _CHATML_END = "<|im_start|>", "<|im_end|>"


def render(
    example: Example, config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> list[Piece]:
    """Return the pieces of one training row, in order, none empty.

    BOS comes first where the tokenizer defines one. Every response is followed by the end token of its
    turn (EOS, or chatml's `<|im_end|>` where the tokenizer has that as one token), which carries loss
    with it; the row ends with EOS, unless its text goes on in the next example.

    Raises:
        DataError: the tokenizer has no EOS, or no chat template where `data.template=tokenizer` asks for
            it, or that template refuses the conversation or does not open the assistant's turn as its
            generation prompt does.
    """
    prompt, response = _rendered(example, config, tokenizer)
    pieces = [*prompt, *response]
    if config.loss_on is LossOn.all:
        pieces = [piece._replace(carries_loss=not piece.is_skipped) for piece in pieces]
    return [piece for piece in pieces if piece.text]


def prompt_ids(
    example: Example, config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> list[int]:
    """Return the tokens before the last response: the start of the training row, for generation.

    The prompt is not cut to `max_length`. A plain text is its own prompt, which the model goes on with.
    Raises DataError as `render` does.
    """
    prompt, text = _rendered(example, config, tokenizer)
    if not example.has_prompt:
        prompt += text[:1]  # not the end token
    pieces = piece_ids([piece.text for piece in prompt if piece.text], tokenizer)
    return [token for piece in pieces for token in piece]


def trained_answer(
    example: Example, config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> str:
    """Return the last answer as a row of it is trained, decoded as generated answers are: their reference."""
    answer = _exchanges(example, config, tokenizer)[-1].answer
    (ids,) = piece_ids([answer.removesuffix(turn_end(config, tokenizer))], tokenizer)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def turn_end(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text that ends an answer's turn within the row."""
    if config.template is Template.tokenizer:
        return answer_end(tokenizer)
    return _end_of_turn(config, tokenizer, _end_of_row(tokenizer))


def stop_ids(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens that end a turn: the first of what follows an answer, where it is one of its own."""
    chatml = tokenizer.convert_tokens_to_ids(_CHATML_END)
    found = [chatml] if _is_token(_CHATML_END, tokenizer) else []
    (ids,) = piece_ids([turn_end(config, tokenizer)], tokenizer) or [[]]
    if ids and (len(ids) == 1 or ids[0] in tokenizer.added_tokens_decoder):
        found.append(ids[0])
    return [token for token in dict.fromkeys(found) if isinstance(token, int)]


def piece_ids(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the tokens of each text in one batched call, without BOS or EOS around them."""
    distinct = list(dict.fromkeys(texts))  # the end tokens and fixed openings repeat in every row
    if not distinct:
        return []
    encoded = tokenizer(
        distinct,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    ids: dict[str, list[int]] = dict(zip(distinct, encoded, strict=True))  # pyright: ignore
    return [ids[text] for text in texts]


def _rendered(
    example: Example, config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[Piece], list[Piece]]:
    """Return the pieces before the last response and the pieces from there on."""
    end = _end_of_row(tokenizer)
    if not example.has_prompt:
        text = [Piece(example.text, True)] + [Piece(end, True)] * example.complete
        return _start(example.text, tokenizer), text
    exchanges = _exchanges(example, config, tokenizer)
    end_of_turn = _end_of_turn(config, tokenizer, end)
    *earlier, last = exchanges
    prompt = _start(exchanges[0].given, tokenizer)
    for exchange in earlier:
        prompt += [Piece(exchange.given, False), *exchange.answered(end_of_turn)]
    prompt.append(Piece(last.given, False))
    response = last.answered(end_of_turn)
    if (end_of_turn or last.answer[-len(end) :]) != end:
        response += last.answered(end)[1:]
    return prompt, response


def _start(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[Piece]:
    """Return BOS as a piece, unless there is none or the template has written it already."""
    bos = tokenizer.bos_token
    return [Piece(str(bos), False)] if bos and not text.startswith(str(bos)) else []


def _end_of_row(tokenizer: "PreTrainedTokenizerBase") -> str:
    if not tokenizer.eos_token:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no end-of-sequence token, so a "
            "response could not end; set eos_token in its tokenizer_config.json"
        )
    return str(tokenizer.eos_token)


def _end_of_turn(config: DataConfig, tokenizer: "PreTrainedTokenizerBase", end_of_row: str) -> str:
    """Return what follows a response: "" where the tokenizer's template has written it already."""
    match config.template:
        case Template.plain | Template.alpaca:
            return end_of_row
        case Template.chatml:
            return _CHATML_END if _is_token(_CHATML_END, tokenizer) else end_of_row
        case Template.tokenizer:
            return ""
        case _:
            assert_never(config.template)


def _is_token(text: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    return tokenizer.convert_tokens_to_ids(text) not in (None, tokenizer.unk_token_id)


def _exchanges(
    example: Example, config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> list[Exchange]:
    if config.template is not Template.tokenizer:
        _refuse_what_only_models_render(example, config.template)
    match config.template:
        case Template.alpaca:
            wording = _ALPACA_INPUT if example.input else _ALPACA
            instruction = example.turns[0].text
            given = wording.format(instruction=instruction, input=example.input)
            return [Exchange(given, example.response)]
        case Template.plain:
            return _collected(
                [(f"{turn.text}\n", turn) for turn in _turns(example, None)], opening=""
            )
        case Template.chatml:
            turns = _turns(example, config.system)
            return _collected(
                [
                    (f"{_chatml_opening(turn.role)}{turn.text}{_CHATML_END}\n", turn)
                    for turn in turns
                ],
                opening=_chatml_opening(Role.assistant),
                closing="\n",
            )
        case Template.tokenizer:
            return own_template(_turns(example, config.system), example.tools, tokenizer)
        case _:
            assert_never(config.template)


def _refuse_what_only_models_render(example: Example, template: Template) -> None:
    """Refuse tools, tool calls and reasoning with templates of ours, which have no words for them."""
    keys = {key for turn in example.turns if turn.further for key in json.loads(turn.further)}
    keys |= {"tools"} if example.tools else set()
    keys |= {"role tool" for turn in example.turns if turn.role is Role.tool}
    if template is Template.alpaca and example.turns[0].role is Role.system:
        keys |= {"a system message"}
    if keys:
        raise DataError(
            f"data.template={template.value} cannot render {', '.join(sorted(keys))}, which rows have "
            f"({example.turns[0].text[:40]!r} …); use data.template=tokenizer with a model whose chat "
            "template does, or leave those rows out"
        )


def _turns(example: Example, system: str | None) -> list[Turn]:
    """Return the turns with the pair's input in its prompt and `system` where they bring none."""
    turns = list(example.turns)
    if example.input:
        asked = next(index for index, turn in enumerate(turns) if turn.role is Role.user)
        turns[asked] = Turn(Role.user, f"{turns[asked].text}\n{example.input}")
    if system is not None and turns[0].role is not Role.system:
        turns.insert(0, Turn(Role.system, system))
    return turns


def _chatml_opening(role: Role) -> str:
    return f"{_CHATML_START}{role.value}\n"


def _collected(turns: list[tuple[str, Turn]], *, opening: str, closing: str = "") -> list[Exchange]:
    """Gather (rendered, turn) into exchanges: `opening` precedes a response, `closing` what follows one."""
    exchanges: list[Exchange] = []
    given = ""
    for rendered, turn in turns:
        if turn.role is Role.assistant:
            exchanges.append(Exchange(given + opening, turn.text, turn.carries_loss))
            given = closing
        else:
            given += rendered
    return exchanges
