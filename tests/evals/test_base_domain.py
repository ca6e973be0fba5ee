"""Forgetting: loss on the base's own domain, against a plain pass over each document, and its error."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness.config.compose import compose_run
from harness.config.schema import EvalConfig
from harness.config.validate import validate
from harness.errors import DataError, RequestError
from harness.evals.base_domain import BITS, FORGETTING, LOSS, forgetting, score_base_domain
from harness.evals.copies import ALONE
from harness.evals.domain_text import check_base_domain, domain_documents
from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.records.metrics_log import read_metrics
from harness.records.record import RunStatus, read_record
from harness.records.scores import RowScores, read_scores
from tests.commands.left_runs import left_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(pretrained: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(pretrained)


def test_it_is_the_cross_entropy_of_documents_that_the_base_has_not_seen(loaded) -> None:
    """By hand: each document between BOS and EOS, every token after BOS predicted."""
    model, tokenizer = loaded
    config = EvalConfig(base_domain="embedded", base_domain_rows=12)
    ((results, scores),) = score_base_domain(model, tokenizer, config, 256, CPU, ALONE)
    nats = tokens = size = 0.0
    for document in domain_documents("embedded", 12, None):
        ids = torch.tensor([tokenizer(document.text)["input_ids"] + [tokenizer.eos_token_id]])
        assert ids[0, 0] == tokenizer.bos_token_id
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        nats += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
        size += len(document.text.encode())
    assert results[LOSS].value == pytest.approx(nats / tokens, abs=1e-5)
    assert results[BITS].value == pytest.approx(nats / math.log(2) / size, abs=1e-5)
    assert results[BITS].n == 12
    assert sum(scores[BITS].weights) == size
    assert results[BITS].value < 1.0  # what the base was trained on: an untrained one has 8


def test_a_document_longer_than_a_row_goes_on_in_the_next(loaded, tmp_path: Path) -> None:
    model, tokenizer = loaded
    file = tmp_path / "domain.txt"
    file.write_text("\n\n".join(d.text for d in domain_documents("embedded", 8, None)))
    found = []
    for rows in (24, 256):
        config = EvalConfig(base_domain=str(file), base_domain_rows=None)
        ((_, scores),) = score_base_domain(model, tokenizer, config, rows, CPU, ALONE)
        found.append(scores[BITS])
    assert found[0].weights == found[1].weights  # no byte is lost
    assert sum(found[0].sums) > sum(found[1].sums)  # with less to see, it is predicted worse


def test_forgetting_is_a_difference_of_the_same_documents() -> None:
    """By hand: (1 + 3) / (10 + 10) = 0.2; residuals -1 and 1: sqrt(2 / 1 * 2) / 20 = 0.1."""
    before = RowScores(rows=(0, 1), sums=(10.0, 12.0), weights=(10, 10))
    after = RowScores(rows=(0, 1), sums=(11.0, 15.0), weights=(10, 10))
    found = forgetting(before, after)
    assert found is not None
    result, scores = found
    assert (result.value, result.n) == (pytest.approx(0.2), 2)
    assert result.standard_error == pytest.approx(0.1)
    assert scores.sums == (1.0, 3.0)
    for rows, weights in (((0, 2), (10, 10)), ((0, 0), (10, 10)), ((0, 1), (9, 10))):
        other = RowScores(rows=rows, sums=(1.0, 2.0), weights=weights)
        assert forgetting(before, other) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    words = ("eval.base_domain=embedded", "eval.base_domain_rows=10", "eval.every_steps=1")
    return left_run(tmp_path_factory.mktemp("out"), *words, "quant=none", "lora=none")


def test_a_run_says_what_it_has_forgotten_and_when(run) -> None:
    record = read_record(run.record)
    assert record.status is RunStatus.completed
    before, after = record.evals["before"], record.evals["after"]
    assert FORGETTING not in before
    risen = after[BITS].value - before[BITS].value
    assert after[FORGETTING].value == pytest.approx(risen, abs=1e-9)
    error = after[FORGETTING].standard_error
    assert error is not None
    unpaired = after[BITS].standard_error
    assert unpaired is not None
    assert 0 < error < unpaired
    rows = read_metrics(run.metrics).rows
    assert all(name in row for row in rows for name in (LOSS, BITS, FORGETTING))
    assert rows[-1][FORGETTING] == pytest.approx(risen, abs=1e-9)
    assert len(read_scores(run.scores, "after")[FORGETTING].rows) == 10


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval.base_domain=embedded", "eval.before=false"], "use eval.before=true"),
        (["eval.base_domain_rows=3"], "eval.base_domain_rows=3 would be ignored"),
        (["eval.base_domain=embedded", "eval.base_domain_rows=null"], "has no end"),
        (["eval.base_domain=embedded", "eval.base_domain_rows=0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        validate(compose_run(words))


def test_a_file_without_text_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"eval\.base_domain.*nowhere\.txt"):
        check_base_domain(EvalConfig(base_domain="nowhere.txt"))
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a"}) + "\n")
    with pytest.raises(DataError, match="text"):
        check_base_domain(EvalConfig(base_domain=str(file)))


def test_a_question_about_forgetting_needs_the_text(tmp_path: Path) -> None:
    file = tmp_path / "q.yaml"
    file.write_text(
        "question: Does rank forget?\nexpect: Hardly.\nbase: [model=embedded, data=rule]\n"
        "space: {lora.rank: 'choice(2, 4)'}\nsearch: {method: grid}\n"
        "objective: {eval/forgetting_bits_per_byte: minimize}\n"
    )
    with pytest.raises(RequestError, match=r"give eval\.base_domain"):
        check_space(load_question(str(file), []))
    check_space(load_question(str(file), ["eval.base_domain=embedded"]))


def test_the_embedded_documents_are_none_that_it_was_trained_or_tuned_on() -> None:
    from harness.embedded.corpus import Part, documents, part_of

    for example, document in zip(
        domain_documents("embedded", 50, None), documents(Part.HELD_OUT, seed=0), strict=False
    ):
        assert example.text == document.text
        assert part_of(document.prompt or document.response) is Part.HELD_OUT
