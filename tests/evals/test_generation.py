"""Batched greedy decoding against transformers' own, one prompt at a time."""

import copy
import logging

import pytest

torch = pytest.importorskip("torch")

from harness.errors import RequestError  # noqa: E402
from harness.evals.copies import ALONE  # noqa: E402
from harness.evals.decoding import TextStops  # noqa: E402
from harness.evals.generation import Decoding, generate_copies  # noqa: E402

CPU = torch.device("cpu")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def prompts(stories, tokenizer) -> list[list[int]]:
    """The starts of nine stories, of very different length and in no order."""
    texts = ["\n".join(stories[i : i + 2]) for i in range(9)]
    return [tokenizer(text)["input_ids"][: 12 + 7 * (i * 4 % 9)] for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def alone(model, tokenizer, prompts) -> list[list[int]]:
    """The new tokens of each prompt by plain `generate`, unbatched and unpadded."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def decoded(tokenizer, answer: list[int]) -> str:
    return tokenizer.decode(answer, skip_special_tokens=True)


def _generate(model, tokenizer, prompts, **changes):
    decoding = Decoding(**{"batch_size": 4, "max_new_tokens": NEW_TOKENS, **changes})
    return generate_copies(model, tokenizer, prompts, decoding, CPU, ALONE)[0]


def test_a_text_that_ends_answers_ends_the_decoding_of_all_that_have_come_to_it(
    model, tokenizer, prompts, alone
):
    texts = [decoded(tokenizer, answer) for answer in alone]
    calls = []
    counted = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        stops = TextStops.of([" ", ""], tokenizer)
        generated = _generate(model, tokenizer, prompts, batch_size=9, text_stops=stops)
    finally:
        counted.remove()
    assert [t.split(" ")[0] for t in generated.texts] == [t.split(" ")[0] for t in texts]
    needed = [
        next(n for n in range(1, len(answer) + 1) if " " in decoded(tokenizer, answer[:n]))
        if " " in text
        else len(answer)
        for text, answer in zip(texts, alone, strict=True)
    ]
    assert len(calls) == max(needed) < NEW_TOKENS
    assert TextStops.of([""], tokenizer) is None


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_answers_equal_unbatched_generation_in_the_prompts_order(
    model, tokenizer, prompts, alone, batch_size
):
    generated = _generate(model, tokenizer, prompts, batch_size=batch_size)
    assert generated.texts == [decoded(tokenizer, answer) for answer in alone]
    assert generated.num_new_tokens == [len(answer) for answer in alone]
    assert len(set(generated.texts)) > 1


def test_an_answer_ends_with_its_first_stop_token(model, tokenizer, prompts, alone):
    stop = alone[0][10]
    generated = _generate(model, tokenizer, prompts, extra_stop_ids=[stop])
    ends = (stop, tokenizer.eos_token_id)
    lengths = [next((i for i, t in enumerate(a) if t in ends), NEW_TOKENS) for a in alone]
    assert generated.num_new_tokens == [min(length + 1, NEW_TOKENS) for length in lengths]
    said = [answer[:length] for answer, length in zip(alone, lengths, strict=True)]
    assert generated.texts == [decoded(tokenizer, answer) for answer in said]
    assert min(lengths) < NEW_TOKENS


def test_the_tokenizers_eos_stops_too(model, tokenizer, prompts, alone):
    end = alone[0].index(alone[0][10])
    own = copy.deepcopy(tokenizer)
    own.eos_token = tokenizer.convert_ids_to_tokens(alone[0][end])
    generated = _generate(model, own, prompts[:1])
    assert generated.num_new_tokens == [end + 1]
    assert generated.texts == [tokenizer.decode(alone[0][:end])]


def test_the_models_own_sampling_and_penalties_are_not_used_and_come_back(
    model, tokenizer, prompts, alone, monkeypatch
):
    from transformers import GenerationConfig

    own = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=5.0, no_repeat_ngram_size=2
    )
    monkeypatch.setattr(model, "generation_config", own)
    generated = _generate(model, tokenizer, prompts)
    assert generated.texts == [decoded(tokenizer, answer) for answer in alone]
    assert model.generation_config is own


def test_nothing_is_printed_or_warned(model, tokenizer, prompts, capfd, caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        _generate(model, tokenizer, prompts)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list


def test_a_prompt_beyond_the_context_keeps_its_end(model, tokenizer, prompts):
    long = (prompts[1] * 60)[:600]
    generated = _generate(model, tokenizer, [long, prompts[0]])
    kept = _generate(model, tokenizer, [long[-(512 - NEW_TOKENS) :]])
    assert generated.num_cut_prompts == 1
    assert generated.texts[0] == kept.texts[0]
    assert kept.num_cut_prompts == 0


def test_answers_as_long_as_the_context_are_refused(model, tokenizer, prompts):
    with pytest.raises(RequestError, match=r"eval\.max_new_tokens=512 .* context of 512 tokens"):
        _generate(model, tokenizer, prompts, max_new_tokens=512)
