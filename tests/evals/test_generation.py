"""Batched greedy decoding against transformers' own, one prompt at a time."""

import copy
import logging
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from harness.engine.cuda.decoding import DecodingSize  # noqa: E402
from harness.errors import RequestError  # noqa: E402
from harness.evals.copies import ALONE, Copies  # noqa: E402
from harness.evals.decoding import Sampling, TextStops, _rows_of  # noqa: E402
from harness.evals.generation import (  # noqa: E402
    Decoding,
    _copies_at_once,
    _left_padded,
    generate_copies,
)

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


class Ending:
    """Copies of one model, of which each ends its answers after so many tokens of its own."""

    def __init__(self, model, ends: dict[int, int], eos: int) -> None:
        self.ends, self.eos = ends, eos
        self.chosen: list[int] = []
        self.rows = self.calls = 0
        self.batches: list[int] = []
        self.hook = model.register_forward_hook(self.end)

    @contextmanager
    def sharing(self, chosen, rows):
        if self.chosen != list(chosen) and len(chosen) == len(self.ends):
            self.calls = 0
        self.chosen, self.rows = list(chosen), rows
        yield

    def end(self, _, inputs, outputs) -> None:
        self.batches.append(len(outputs.logits))
        for index, number in enumerate(self.chosen):
            if self.calls == self.ends[number]:
                outputs.logits[index * self.rows : (index + 1) * self.rows, -1, self.eos] = 1e9
        self.calls += 1


def test_a_copy_that_has_ended_leaves_the_batch_and_the_others_go_on(
    model, tokenizer, prompts, alone
) -> None:
    """Three copies of two prompts: after 3, 7 and 5 tokens their batch has 6, 4 and 2 rows."""
    ends, told = {0: 3, 1: 7, 2: 5}, []
    ending = Ending(model, ends, tokenizer.eos_token_id)
    try:
        copies = Copies(3, ending.sharing)
        decoding = Decoding(
            batch_size=2, max_new_tokens=NEW_TOKENS, tell=lambda *said: told.append(said)
        )
        found = generate_copies(model, tokenizer, prompts[:2], decoding, CPU, copies)
    finally:
        ending.hook.remove()
    assert ending.batches == [6] * 4 + [4] * 2 + [2] * 2
    for number, generated in enumerate(found):
        assert generated.num_new_tokens == [ends[number] + 1] * 2
        said = [answer[: ends[number]] for answer in alone[:2]]
        assert generated.texts == [decoded(tokenizer, answer) for answer in said]
        for prompt, answer in enumerate(said):
            assert [token for c, p, token in told if (c, p) == (number, prompt)] == answer


class Quick:
    """Something quicker that answers for a model, of so many copies at once; it says what it was asked."""

    def __init__(self, answers: list[list[int]], of: list[list[int]], at_once: int) -> None:
        self._answers, self._of, self._at_once = answers, of, at_once
        self.asked: list[tuple[list[int], int, DecodingSize]] = []

    def at_once(self, size: DecodingSize) -> int:
        return self._at_once

    def answers(self, chosen, prompts, size, stop_ids):
        self.asked.append((list(chosen), len(prompts), size))
        assert stop_ids == sorted(stop_ids)
        own = [self._answers[self._of.index(list(prompt))] for prompt in prompts]
        return [[[*answer, 77, 78] for answer in own] for _ in chosen]


def test_what_is_quicker_answers_greedily_for_all_copies_and_never_where_something_is_drawn(
    model, tokenizer, prompts, alone
) -> None:
    quick = Quick(alone, prompts, at_once=2)
    copies = Copies(3, ALONE.sharing, quick)  # pyright: ignore[reportArgumentType]
    decoding = Decoding(batch_size=4, max_new_tokens=NEW_TOKENS)
    found = generate_copies(model, tokenizer, prompts, decoding, CPU, copies)
    stops = [tokenizer.eos_token_id in answer for answer in alone]
    for generated in found:
        whole = [a if stop else [*a, 77, 78] for a, stop in zip(alone, stops, strict=True)]
        assert generated.texts == [decoded(tokenizer, answer) for answer in whole]
    size = DecodingSize(rows=4, length=max(map(len, prompts)) + NEW_TOKENS, new_tokens=NEW_TOKENS)
    assert quick.asked == [(copies, rows, size) for rows in (4, 4, 1) for copies in ([0, 1], [2])]
    drawn = replace(decoding, sampling=Sampling(temperature=1.0), max_new_tokens=1)
    generate_copies(model, tokenizer, prompts[:1], drawn, CPU, replace(copies, count=1))
    told = replace(decoding, tell=lambda *_: None, max_new_tokens=1)
    generate_copies(model, tokenizer, prompts[:1], told, CPU, replace(copies, count=1))
    assert len(quick.asked) == 6


@pytest.mark.parametrize(
    ("positions", "at_once"), [(1, 2**13), (2**12, 2), (2**13, 1), (2**14, 1), (2**13 - 1, 1)]
)
def test_so_many_copies_decode_together_as_256_mib_of_keys_and_values_hold(positions, at_once):
    """At most a key and a value of the hidden size, in 4 bytes, for each of 8 layers of 512."""
    text = SimpleNamespace(hidden_size=512, num_hidden_layers=8)
    config = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    assert _copies_at_once(config, positions) == at_once


def test_prompts_are_padded_on_their_left() -> None:
    found = _left_padded([[5, 6], [7, 8, 9], [4]], 3, CPU)
    assert found["input_ids"].tolist() == [[3, 5, 6], [7, 8, 9], [3, 3, 4]]
    assert found["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]


def test_rows_of_copies_that_go_on_are_kept() -> None:
    assert _rows_of([True, False, True], 2).tolist() == [0, 1, 4, 5]
    assert _rows_of([False, True], 3).tolist() == [3, 4, 5]


def test_a_text_can_have_ended_in_as_many_tokens_as_it_has_bytes_and_two(tokenizer) -> None:
    stops = TextStops.of(["ab", "", "é!"], tokenizer)
    assert stops is not None
    assert (stops.texts, stops.window) == (("ab", "é!"), 3 + 2)
    ids = tokenizer("the end.", add_special_tokens=False)["input_ids"]
    end = TextStops.of(["end"], tokenizer)
    assert end is not None
    assert end.reached(ids)
    assert not end.reached(tokenizer("the start", add_special_tokens=False)["input_ids"])
