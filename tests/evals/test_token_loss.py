"""Held-out loss against a plain transformers forward. Shape suffixes as in harness.evals.token_loss."""

import math
from contextlib import contextmanager
from itertools import islice

import pytest

torch = pytest.importorskip("torch")

from harness.data.rows import NO_LOSS, Batch, TokenRows  # noqa: E402
from harness.embedded.corpus import STORY, Part, documents  # noqa: E402
from harness.engine.forward import target_logits  # noqa: E402
from harness.evals import token_loss  # noqa: E402
from harness.evals.copies import ALONE, Copies  # noqa: E402
from harness.evals.token_loss import (  # noqa: E402
    RowSums,
    loss_results,
    loss_scores,
    score_rows,
    summed,
)
from harness.records.scores import RowScores  # noqa: E402

CPU = torch.device("cpu")


def _rows(sequences: list[list[int]], prompts: list[int]) -> TokenRows:
    """Return padded rows, where the first `prompts[n]` tokens of row n carry no loss."""
    length = max(map(len, sequences)) + 3
    ids_NT = torch.zeros(len(sequences), length, dtype=torch.int32)
    targets_NT = torch.full((len(sequences), length), NO_LOSS, dtype=torch.int32)
    for row, (tokens, prompt) in enumerate(zip(sequences, prompts, strict=True)):
        ids_NT[row, : len(tokens)] = torch.tensor(tokens)
        targets_NT[row, prompt - 1 : len(tokens) - 1] = torch.tensor(tokens[prompt:])
    return TokenRows(
        input_ids_NT=ids_NT,
        targets_NT=targets_NT,
        segments_NT=None,
        lengths_N=torch.tensor([len(tokens) for tokens in sequences]),
        source_N=torch.arange(len(sequences)),
    )


@pytest.fixture(scope="module")
def sequences(stories, tokenizer) -> list[list[int]]:
    """Twelve texts of up to four stories, cut to different lengths."""
    texts = ["\n".join(stories[i : i + 4]) for i in range(12)]
    return [tokenizer(text)["input_ids"][: 40 + 17 * (i * 5 % 12)] for i, text in enumerate(texts)]


PROMPTS = [1, 5, 9, 1, 20, 3, 8, 1, 30, 2, 7, 11]


def _plain(model, tokens: list[int], prompt: int) -> tuple[float, int, int]:
    """Return (summed loss, correct, tokens) of one unpadded sequence by transformers' own `labels`."""
    ids = torch.tensor([tokens])
    labels = ids.clone()
    labels[:, :prompt] = NO_LOSS
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
    count = len(tokens) - prompt
    top = output.logits[0, prompt - 1 : -1].argmax(-1)
    return output.loss.item() * count, int((top == ids[0, prompt:]).sum()), count


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_sums_equal_a_plain_forward_row_by_row(model, sequences, batch_size):
    sums = score_rows(model, _rows(sequences, PROMPTS), batch_size, CPU)
    expected = [_plain(model, *row) for row in zip(sequences, PROMPTS, strict=True)]
    loss, correct, tokens = map(list, zip(*expected, strict=True))
    assert sums.loss_sum_N.tolist() == pytest.approx(loss, rel=1e-5)
    assert sums.correct_N.tolist() == correct
    assert sums.tokens_N.tolist() == tokens
    assert sums.loss_sum_N.dtype == torch.float64


def test_packed_rows_score_each_example_as_if_alone(model, sequences):
    first, second, third = sequences[0], sequences[1], sequences[2]
    length = sum(map(len, (first, second, third))) + 2
    ids, targets, segments = [], [], []
    for number, tokens in enumerate((first, second, third), 1):
        ids += tokens
        targets += [*tokens[1:], NO_LOSS]
        segments += [number] * len(tokens)
    rows = TokenRows(
        input_ids_NT=torch.tensor([[*ids, 0, 0]], dtype=torch.int32),
        targets_NT=torch.tensor([[*targets, NO_LOSS, NO_LOSS]], dtype=torch.int32),
        segments_NT=torch.tensor([[*segments, 0, 0]], dtype=torch.int32),
        lengths_N=torch.tensor([length - 2]),
        source_N=torch.tensor([0]),
    )
    sums = score_rows(model, rows, 4, CPU)
    expected = [_plain(model, tokens, 1) for tokens in (first, second, third)]
    assert sums.loss_sum_N.item() == pytest.approx(sum(e[0] for e in expected), rel=1e-5)
    assert sums.correct_N.item() == sum(e[1] for e in expected)


def test_scoring_in_chunks_changes_nothing(model, sequences, monkeypatch):
    rows = _rows(sequences, PROMPTS)
    whole = score_rows(model, rows, 4, CPU)
    monkeypatch.setattr(token_loss, "_CHUNK_ELEMENTS", 1024 * 7)
    assert torch.equal(score_rows(model, rows, 4, CPU).loss_sum_N, whole.loss_sum_N)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_copy_is_scored_on_every_row(model, sequences, count):
    """Copies that differ in nothing score what the model scores, and each pass says whose rows it holds."""
    passes: list[tuple[int, int]] = []
    positions: list[int] = []

    @contextmanager
    def sharing(chosen, rows):
        passes.append((len(chosen), rows))
        yield

    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: positions.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    rows = _rows(sequences, PROMPTS)
    try:
        scored = token_loss.score_copies(model, rows, 4, CPU, Copies(count, sharing))
        expected_rows = [copies * rows for copies, rows in passes]
        assert positions == expected_rows
    finally:
        hook.remove()
    alone = score_rows(model, rows, 4, CPU)
    assert len(scored) == count
    for sums in scored:
        torch.testing.assert_close(sums.loss_sum_N, alone.loss_sum_N, rtol=1e-6, atol=0)
        assert sums.correct_N.equal(alone.correct_N)
        assert sums.tokens_N.equal(alone.tokens_N)


def test_cross_entropy_is_taken_in_float32(model, sequences):
    import copy

    half = copy.deepcopy(model).to(torch.bfloat16)
    sums = score_rows(half, _rows(sequences[:1], [1]), 1, CPU)
    ids = torch.tensor([sequences[0]])
    with torch.no_grad():
        logits_TV = half(input_ids=ids).logits[0, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:], reduction="sum")
    assert sums.loss_sum_N.item() == pytest.approx(expected.item(), rel=1e-3)
    assert (sums.loss_sum_N.float().bfloat16() != sums.loss_sum_N.float()).all()


def test_rows_of_one_source_are_one_cluster():
    sums = RowSums(
        loss_sum_N=torch.tensor([2.0, 1.0, 3.0, 3.0], dtype=torch.float64),
        correct_N=torch.tensor([1, 0, 0, 2]),
        tokens_N=torch.tensor([1, 1, 1, 3]),
    )
    results = loss_results(sums, torch.tensor([7, 4, 4, 9]))
    assert results["eval/loss"].n == 3
    assert results["eval/loss"].value == 1.5
    # clusters (2, 1), (4, 2), (3, 3): the hand computation of test_result
    assert results["eval/loss"].standard_error == pytest.approx(math.sqrt(3 / 2 * 3.5) / 6)
    assert results["eval/token_accuracy"].value == 0.5


def test_the_perplexity_of_held_out_stories_is_that_of_the_models_card(model, tokenizer):
    """The pretraining has measured 0.4983 nats a token on other held-out stories, with code of its own."""
    held_out = documents(Part.HELD_OUT, seed=8)
    texts = islice((d.response for d in held_out if d.skill == STORY), 200)
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    sums = score_rows(model, _rows(rows, [1] * 200), 50, CPU)
    results = loss_results(sums, torch.arange(200))
    error = results["eval/loss"].standard_error
    assert error is not None
    assert abs(results["eval/loss"].value - 0.4983) < 3 * error < 0.05
    assert results["eval/perplexity"].value == pytest.approx(math.exp(results["eval/loss"].value))


def test_training_goes_on_after_an_evaluation(model, sequences):
    """What a forward pass caches must stay usable by autograd (no inference tensors)."""
    import copy

    trained = copy.deepcopy(model)
    score_rows(trained, _rows(sequences[:2], [1, 1]), 2, CPU)
    ids = torch.tensor([sequences[0]])
    trained(input_ids=ids, labels=ids).loss.backward()
    assert trained.get_input_embeddings().weight.grad.norm() > 0


def test_scores_of_clusters_are_sums_in_the_order_of_their_numbers():
    sums = RowSums(
        loss_sum_N=torch.tensor([2.0, 1.0, 3.0, 3.0], dtype=torch.float64),
        correct_N=torch.tensor([1, 0, 0, 2]),
        tokens_N=torch.tensor([1, 1, 1, 3]),
    )
    numbers = torch.tensor([7, 4, 4, 9])
    found = loss_scores(sums, numbers)
    assert found == {
        "eval/loss": RowScores(rows=(4, 7, 9), sums=(4.0, 2.0, 3.0), weights=(2, 1, 3)),
        "eval/token_accuracy": RowScores(rows=(4, 7, 9), sums=(0, 1, 2), weights=(2, 1, 3)),
    }
    assert summed(sums.loss_sum_N, sums.correct_N, numbers) == RowScores(
        rows=(4, 7, 9), sums=(4.0, 2.0, 3.0), weights=(0, 1, 2)
    )


@pytest.mark.parametrize("text_bytes", [None, [0, 0, 0, 0], [3, 5, 0, 8]])
def test_bits_per_byte_are_nats_over_the_logarithm_of_two_and_the_bytes(text_bytes):
    sums = RowSums(
        loss_sum_N=torch.tensor([2.0, 1.0, 3.0, 3.0], dtype=torch.float64),
        correct_N=torch.tensor([1, 0, 0, 2]),
        tokens_N=torch.tensor([1, 1, 1, 3]),
    )
    given = None if text_bytes is None else torch.tensor(text_bytes)
    results = loss_results(sums, torch.arange(4), given)
    if text_bytes == [3, 5, 0, 8]:
        # Of a row without bytes there is nothing to divide by, and it is no cluster.
        assert results["eval/bits_per_byte"].value == pytest.approx(6 / math.log(2) / 16)
        assert results["eval/bits_per_byte"].n == 3
    else:
        assert "eval/bits_per_byte" not in results


def test_what_is_quicker_scores_as_the_model_does(model, sequences):
    """Something that computes with the model itself, and says what it was asked."""
    rows, asked = _rows(sequences, PROMPTS), []

    class Quick:
        def score(self, chosen, batch):
            asked.append((list(chosen), len(batch.input_ids_BT)))
            with torch.no_grad():
                logits_MV, targets_M = target_logits(model, batch)
            loss_M = torch.nn.functional.cross_entropy(logits_MV, targets_M, reduction="none")
            right_M = (logits_MV.argmax(dim=-1) == targets_M).float()
            return [torch.stack([loss_M, right_M])] * len(chosen)

    copies = Copies(2, ALONE.sharing, Quick())  # pyright: ignore[reportArgumentType]
    alone = score_rows(model, rows, 5, CPU)
    for sums in token_loss.score_copies(model, rows, 5, CPU, copies):
        torch.testing.assert_close(sums.loss_sum_N, alone.loss_sum_N, rtol=1e-6, atol=0)
        assert sums.loss_sum_N.dtype is torch.float64
        assert sums.correct_N.equal(alone.correct_N)
        assert sums.tokens_N.equal(alone.tokens_N)
    assert [n for chosen, n in asked for _ in chosen] == [5, 5, 5, 5, 2, 2]


def test_a_batch_is_repeated_whole(sequences):
    rows = _rows(sequences[:3], PROMPTS[:3])
    batch = rows.batch([0, 1, 2])
    segments = torch.ones_like(batch.input_ids_BT)
    batch = Batch.of(batch.input_ids_BT, batch.targets_BT, segments)
    assert token_loss.repeated(batch, 1) is batch
    thrice = token_loss.repeated(batch, 3)
    for name in ("input_ids_BT", "targets_BT", "segments_BT"):
        assert torch.equal(getattr(thrice, name), torch.cat([getattr(batch, name)] * 3))


def test_bytes_are_those_of_the_text_with_loss(tokenizer):
    """Of the text as it stands: nothing is cleaned up, and the end token has none."""
    text = "He said , no . do n't"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = _rows([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]] * 2, [1, len(ids)])
    last = tokenizer.decode(ids[-1:], clean_up_tokenization_spaces=False)
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert whole.strip() == text
    found = token_loss.bytes_with_loss(rows, tokenizer).tolist()
    assert found == [len(whole.encode()), len(last.encode())]
