"""Whether a published ordering appears: worded by the test, from records made by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.contrasts import answered, contrasts_table
from analysis.published import Published, load_published
from analysis.published_order import (
    Order,
    _claim,
    ordering,
    ordering_table,
    published_spec,
)
from analysis.render import markdown
from analysis.sources import load_sweep
from analysis.tables import build_table
from harness.question.compare import Expected
from harness.records.run_directory import RunDirectory
from harness.records.scores import RowScores, keep_scores
from tests.analysis.test_answer import around, saved

PUBLISHED = ["lora_e2e_loss"]  # rank 1: 1.23, 2: 1.21, 4: 1.18, 8: 1.17, 16 and 32: 1.16


def placed(out: Path, losses: Mapping[int, Sequence[float]], **asked: Any):
    saved(out, dict(losses), **({"published": PUBLISHED, "margin": 0.02} | asked))
    sweep = load_sweep(out, "small")
    found = answered(sweep)
    assert found is not None
    order = ordering(sweep, found)
    assert order is not None
    return sweep, found, order


@pytest.mark.parametrize(
    ("second", "order"),
    [
        (around(0.9, shift=1), Order.appears),
        (around(1.1, shift=1), Order.reverse),
        (around(1.0, shift=1), Order.absent),
        (around(1.01, 30.0, shift=2), Order.undecided),
    ],
)
def test_the_published_numbers_claim_and_the_test_says(tmp_path, second, order) -> None:
    _, _, found = placed(tmp_path, {2: around(1.0), 8: second}, compare={"lora.rank": "steps"})
    (one,) = found.placed
    assert one.claim is not None
    assert one.claim.value == "better"  # 1.17 at rank 8, 1.21 at rank 2
    assert one.order is order
    table = ordering_table(found, "t")
    assert table.rows[0][-1].text == order.value
    assert "\u22120.04" in markdown(table)
    words = {Order.reverse: "is reversed", Order.undecided: "is not decided"}
    said = words.get(order, order.value)
    assert found.sentence == f"Of 1 published comparisons the ordering {said} in 1."


def test_equal_published_numbers_claim_equivalence(tmp_path) -> None:
    losses = {16: around(1.0), 32: around(1.0, shift=1)}
    _, _, found = placed(tmp_path, losses, compare={"lora.rank": "steps"})
    assert [each.order for each in found.placed] == [Order.appears]
    _, _, found = placed(
        tmp_path / "other",
        {16: around(1.0), 32: around(0.9, shift=1)},
        compare={"lora.rank": "steps"},
    )
    assert [each.order for each in found.placed] == [Order.absent]


def test_a_difference_within_the_papers_deviation_claims_none(tmp_path) -> None:
    # LoRA, Table 6, all attention weights on WikiSQL: 73.7 and 74.0, each ± 0.5.
    losses = {2: around(1.0), 8: around(1.0, shift=1)}
    saved_with = {"published": ["lora_rank_all_attention"], "compare": {"lora.rank": "steps"}}
    _, _, found = placed(tmp_path, losses, **saved_with)
    assert found.placed[0].claim is not None
    assert found.placed[0].claim.value == "equivalent"


def test_what_the_question_expects_goes_before_the_numbers(tmp_path) -> None:
    losses = {2: around(1.0), 8: around(1.1, shift=1)}
    _, _, found = placed(tmp_path, losses, compare={"lora.rank": "steps", "expected": "worse"})
    assert found.placed[0].order is Order.appears


def test_a_level_that_the_paper_does_not_have_is_not_claimed(tmp_path) -> None:
    losses = {2: around(1.0), 6: around(0.9, shift=1), 8: around(0.8, shift=2)}
    sweep, answer, found = placed(tmp_path, losses, compare={"lora.rank": 2})
    assert [each.order for each in found.placed] == [Order.unclaimed, Order.appears]
    assert "Of 1 published comparisons" in found.sentence
    spec = published_spec(sweep, answer)
    assert spec is not None
    text = markdown(build_table(spec, sweep.rows))
    assert "| 8 | 4 | **0.8000" in text
    assert "1.17 |" in text


def test_a_question_that_names_nothing_published_has_no_ordering(tmp_path) -> None:
    saved(tmp_path, {2: around(1.0), 8: around(0.9, shift=1)}, compare={"lora.rank": "steps"})
    sweep = load_sweep(tmp_path, "small")
    found = answered(sweep)
    assert found is not None
    assert ordering(sweep, found) is None


def test_published_figures_that_can_never_stand_beside_ours_say_why() -> None:
    never: list[Published] = [load_published(n) for n in ("qlora_glue", "qlora_super_ni_3b")]
    assert all(table.never is not None and "causal models" in table.never for table in never)
    assert load_published("qlora_mmlu").never is None


def test_rows_are_the_replicates_where_nothing_is_trained(tmp_path) -> None:
    saved(tmp_path, {2: [1.0], 8: [0.9]}, compare={"lora.rank": "steps"}, margin=0.02)
    sums = {2: (3.0, 2.0, 5.0), 8: (2.7, 1.8, 4.5)}
    for record in (tmp_path / "runs").glob("*/run.json"):
        tree = json.loads(record.read_text())
        tree["config"]["optim"]["steps"] = 0
        record.write_text(json.dumps(tree))
        rank = tree["config"]["lora"]["rank"]
        scores = RowScores(rows=(0, 1, 2), sums=sums[rank], weights=(3, 2, 5))
        keep_scores(RunDirectory(record.parent).scores, "after", {"eval/loss": scores})
    found = answered(load_sweep(tmp_path, "small"))
    assert found is not None
    (one,) = found.all
    assert one.of_rows
    assert one.tested is not None
    assert one.tested.n == 3
    assert one.tested.difference == pytest.approx(-0.1)  # every row is a tenth lower, by its tokens
    first, tuning, *_ = contrasts_table(found, "t").footnotes
    assert first.startswith("Nothing is trained")
    assert "the test rows are the replicates" in first
    assert tuning == "Tuning: none, a level has one cell."


# Several at once ------------------------------------------------------------------------------------


def test_orders_that_differ_are_named_each_with_its_pairs(tmp_path) -> None:
    """Published: 1.21 at rank 2, 1.17 at 8, 1.16 at 16 and 32."""
    losses = {
        2: around(1.0),
        8: around(0.9, shift=1),  # better, as published
        16: around(1.1, shift=2),  # worse
        32: around(1.0, 30.0, shift=3),
    }
    _, _, found = placed(tmp_path, losses, compare={"lora.rank": 2})
    assert [each.order for each in found.placed] == [Order.appears, Order.reverse, Order.undecided]
    assert found.sentence == (
        "Of 3 published comparisons the ordering appears in 1 (8 beside 2), is reversed in 1 (16 beside 2), "
        "is not decided in 1 (32 beside 2)."
    )


def test_a_side_that_was_not_confirmed_is_not_measured_and_its_line_says_why(tmp_path) -> None:
    asked = {"compare": {"lora.rank": 2, "expected": "better"}, "published": PUBLISHED}
    saved(tmp_path, {2: around(1.0), 8: around(0.9, shift=1)}, **asked)
    file = tmp_path / "sweeps" / "small" / "sweep.yaml"
    file.write_text(file.read_text().replace("choice(2, 8)", "choice(2, 8, 16)"))
    sweep = load_sweep(tmp_path, "small")
    answer = answered(sweep)
    assert answer is not None
    found = ordering(sweep, answer)
    assert found is not None
    assert [each.order for each in found.placed] == [Order.appears, Order.unmeasured]
    assert "is not measured in 1 (16 beside 2)" in found.sentence
    assert [len(each.values) for each in found.placed] == [1, 0]
    table = ordering_table(found, "t")
    line = [cell.text for cell in table.rows[1]]
    assert line[:4] == ["16", "2", "—", "better"]
    assert line[4:7] == ["—", "—", "—"]
    assert line[7] == "no cell with lora.rank=16 was measured and kept the constraints"
    assert line[8] == "not measured"
    assert len(table.columns) == len(line) == len(table.rows[0])
    assert table.columns[0].label == "lora.rank"
    assert table.columns[2].label.startswith("published Δ: ")
    assert table.rows[0][2].number == "-0.04"
    assert len(table.footnotes) == 2, "the paper has one of its own"


def test_a_paper_that_has_neither_side_claims_nothing(tmp_path) -> None:
    losses = {3: around(1.0), 6: around(0.9, shift=1)}
    sweep, answer, found = placed(tmp_path, losses, compare={"lora.rank": "steps"})
    assert found.sentence == "No published comparison stands beside these."
    table = ordering_table(found, "t")
    assert [cell.text for cell in table.rows[0]][2] == "—", "what it is by the paper"
    assert len(table.footnotes) == 1
    nameless = replace(sweep, asked={**sweep.asked, "published": ["no_such_table"]})
    assert published_spec(nameless, answer) is None
    unknown = ordering(nameless, answer)
    assert unknown is not None
    assert [each.values for each in unknown.placed] == [()]


def test_a_score_that_falls_is_worse_and_one_that_rises_is_better() -> None:
    table = load_published("lora_rank_query_value")  # an accuracy
    assert _claim(table, 0.5, 0.2) is Expected.better
    assert _claim(table, -0.5, 0.2) is Expected.worse
    assert _claim(table, 0.2, 0.2) is Expected.equivalent
    assert _claim(table, -0.21, 0.2) is Expected.worse
    loss = load_published("lora_e2e_loss")
    assert _claim(loss, -0.01, 0.0) is Expected.better
    assert _claim(loss, 0.01, 0.0) is Expected.worse
    assert _claim(loss, 0.0, 0.0) is Expected.equivalent


def test_the_published_table_has_a_line_for_each_level_and_chooses_what_was_tuned(tmp_path) -> None:
    losses = {2: around(1.0), 8: around(0.9, shift=1)}
    sweep, answer, _ = placed(tmp_path, losses, compare={"lora.rank": "steps"})
    tuned = replace(sweep, axes=("optim.lr", "lora.rank", "unused"))
    for row in tuned.rows:
        row["point"] = row["point"] | {"optim.lr": "0.001"}
    spec = published_spec(tuned, answer)
    assert spec is not None
    assert (spec.rows, spec.choose, spec.columns) == (
        ("lora.rank",),
        ("optim.lr",),
        ("eval/loss",),
    )
    assert spec.published == ("lora_e2e_loss",)
    assert spec.title == f"{tuned.question} Published beside ours, on fresh seeds."
    unasked = published_spec(replace(tuned, question=""), answer)
    assert unasked is not None
    assert unasked.title.startswith("small Published")


def test_a_paper_that_has_not_the_levels_does_not_hide_the_next(tmp_path) -> None:
    losses = {2: around(1.0), 8: around(0.9, shift=1)}
    both = {"published": ["qlora_mmlu", *PUBLISHED], "compare": {"lora.rank": "steps"}}
    sweep, answer, found = placed(tmp_path, losses, **both)
    assert [table.name for table, _, _ in found.placed[0].values] == PUBLISHED
    assert found.placed[0].order is Order.appears
    spec = published_spec(sweep, answer)
    assert spec is not None
    keys = [column.key for column in build_table(spec, sweep.rows).columns]
    assert PUBLISHED[0] in keys
    assert "qlora_mmlu" not in keys
