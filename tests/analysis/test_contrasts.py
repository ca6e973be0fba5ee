"""Contrasts within the levels of another axis, with what is missing, and what other test rows might say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from analysis.answer import Expectation, answer_of
from analysis.compare import p_text
from analysis.contrasts import answered, contrasts_table
from analysis.crossed import crossed_difference
from analysis.sources import SweepData, load_sweep
from analysis.statistics import holm
from harness.records.record import RunStatus
from harness.records.scores import RowScores
from tests.analysis.rows_for_figures import Run
from tests.analysis.test_answer import SEEDS, around
from tests.analysis.test_report import save_sweep

Losses = Mapping[tuple[str, int], Sequence[float | None]]
WITHIN = {"lora.rank": 2, "per": "quant"}
LOSS = {"eval/loss": "minimize"}


def sweep_of(
    out: Path, losses: Losses, objectives: Mapping[str, str] = LOSS, **asked: Any
) -> SweepData:
    """Write a finished sweep over formats and ranks with these losses on fresh seeds; None: it diverged."""
    cells = list(losses)
    runs = [
        Run(format=f, rank=r, loss=1.0, role="search", trial=trial)
        for trial, (f, r) in enumerate(cells)
    ]
    runs += [
        Run(format=cell[0], rank=cell[1], seed=seed, loss=loss or 9.0, exact=1 - (loss or 1.0) / 10,
            role="confirmation", trial=trial, split="test",
            status=RunStatus.diverged if loss is None else RunStatus.completed)
        for trial, cell in enumerate(cells)
        for seed, loss in zip(SEEDS, losses[cell], strict=False)
    ]  # fmt: skip
    save_sweep(out, runs)
    directory = out / "sweeps" / "small"
    state = json.loads((directory / "state.json").read_text())
    for line in (*state["trials"], *state["confirmed"]):
        trial = line["trial"] if "trial" in line else line["number"]
        line["point"] = {"quant": cells[trial][0], "lora.rank": str(cells[trial][1])}
    compares = asked.setdefault("compare", WITHIN)
    kept = [
        [key for key in (*each, each.get("per")) if key in ("quant", "lora.rank")]
        for each in (compares if isinstance(compares, list) else [compares])
    ]
    for line in state["confirmed"]:
        line["compared"] = [{key: line["point"][key] for key in keys} for keys in kept]
        line["values"] = dict.fromkeys(objectives, next(iter(line["values"].values())))
    state["objectives"] = objectives
    (directory / "state.json").write_text(json.dumps(state))
    levels = [list(dict.fromkeys(map(str, each))) for each in zip(*cells, strict=True)]
    space = {
        "quant": f"choice({', '.join(levels[0])})",
        "lora.rank": f"choice({', '.join(levels[1])})",
    }
    question = {"name": "small", "question": "Which?", "space": space}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(question | asked))
    return load_sweep(out, "small")


def text_of(sweep: SweepData) -> str:
    found = answer_of(sweep)
    assert found is not None
    return found.text


AGREE: Losses = {
    ("nf4", 2): around(1.0),
    ("nf4", 8): around(0.9, shift=1),
    ("int4", 2): around(2.0, shift=2),
    ("int4", 8): around(1.7, shift=3),
}
DIFFER: Losses = {**AGREE, ("int4", 8): around(2.2, shift=3)}


def differences(losses: Losses, of: str) -> np.ndarray:
    return np.array(losses[of, 8], float) - np.array(losses[of, 2], float)


def test_places_that_agree_are_told_together_from_the_least_to_the_most(tmp_path: Path) -> None:
    text = text_of(sweep_of(tmp_path, AGREE))
    assert "lora.rank=8 is better than 2 by 0.1000 to 0.3000 nats/token [" in text
    assert "within each quant (nf4, int4)" in text


def test_places_that_differ_are_told_apart_and_whether_they_differ_is_tested(tmp_path) -> None:
    sweep = sweep_of(tmp_path, DIFFER)
    text = text_of(sweep)
    assert "lora.rank=8 is better than 2 by 0.1000" in text
    assert "within quant=nf4; is worse than 2 by 0.2000" in text
    assert "within quant=int4." in text
    # Of two levels the analysis of variance is the paired test of their differences.
    p = stats.ttest_rel(differences(DIFFER, "nf4"), differences(DIFFER, "int4")).pvalue  # pyright: ignore
    found = answered(sweep)
    assert found is not None
    assert found.interactions == {("lora.rank", "8", "2"): pytest.approx(p)}
    assert f"What lora.rank=8 does beside 2 depends on quant (p {p_text(p)})" in text
    notes = contrasts_table(found, "t").footnotes
    told = f"Whether a difference of lora.rank depends on quant, p: 8 beside 2 {p_text(p)} ("
    assert any(note.startswith(told) for note in notes)


def test_what_does_not_depend_is_said_likewise(tmp_path: Path) -> None:
    losses = {**AGREE, ("int4", 8): around(1.9, 4.0, shift=1), ("nf4", 8): around(0.9, 4.0)}
    text = text_of(sweep_of(tmp_path, losses))
    p = stats.ttest_rel(differences(losses, "nf4"), differences(losses, "int4")).pvalue  # pyright: ignore
    assert p > 0.05
    assert f"is not shown to depend on quant (p = {p_text(p)})" in text


def test_a_line_of_the_table_has_its_place_its_pairs_and_its_verdict(tmp_path: Path) -> None:
    found = answered(sweep_of(tmp_path, DIFFER, margin=0.15))
    assert found is not None
    table = contrasts_table(found, "t")
    assert [column.key for column in table.columns] == [
        *("level", "reference", "quant", "n", "difference", "interval", "p", "p equivalence"),
        "verdict",
    ]
    assert table.columns[0].label == "lora.rank"
    shown = [[cell.text for cell in line] for line in table.rows]
    assert [line[:4] for line in shown] == [["8", "2", "nf4", "4"], ["8", "2", "int4", "4"]]
    assert [line[-1] for line in shown] == ["better, within the margin", "worse"]
    (_, _, _, n, difference, *_) = table.rows[0]
    assert n.n == 4
    assert len(n.run_ids) == 8
    assert difference.text.startswith(("-0.1000", "−0.1000"))


def test_two_compared_axes_have_a_column_for_their_names(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, AGREE, compare=[WITHIN, {"quant": "each", "per": "lora.rank"}])
    found = answered(sweep)
    assert found is not None
    table = contrasts_table(found, "t")
    assert table.columns[0].key == "axis"
    assert [line[0].text for line in table.rows] == ["lora.rank"] * 2 + ["quant"] * 2
    assert len(found.interactions) == 2


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (
            {cell: values for cell, values in AGREE.items() if cell != ("int4", 8)},
            "no cell with lora.rank=8 was measured and kept the constraints",
        ),
        ({**AGREE, ("int4", 8): [None, None]}, "lora.rank=8: diverged"),
        ({**AGREE, ("int4", 2): [2.0], ("int4", 8): [None, 1.7]}, "no seed has both"),
    ],
)
def test_what_cannot_be_compared_says_why(tmp_path: Path, losses: Losses, reason: str) -> None:
    sweep = sweep_of(tmp_path, losses, margin=0.01)
    found = answered(sweep)
    assert found is not None
    one, other = found.all
    assert one.missing == ""
    assert (other.tested, other.missing) == (None, reason)
    assert f"is not compared with 2 ({reason}) within quant=int4" in text_of(sweep)
    lines = contrasts_table(found, "t").rows
    assert [cell.text for cell in lines[1]] == ["8", "2", "int4", *(["—"] * 5), reason]
    assert len(lines[0]) == len(lines[1])
    scores = [
        RowScores(rows=(0, 1, 2), sums=(1.0, 2.0 + seed, 4.0), weights=(1,) * 3)
        for seed in (0, 1, 3)
    ]
    over_rows = replace(one, crossed=crossed_difference([*pairwise(scores)]))
    with_column = contrasts_table(replace(found, compared=((over_rows, other),)), "t")
    assert {len(line) for line in with_column.rows} == {len(with_column.columns)}
    assert len(with_column.columns) == len(lines[0]) + 1


def test_of_all_pairs_those_that_are_decided_come_first(tmp_path: Path) -> None:
    losses = {
        ("nf4", 2): around(1.0),
        ("nf4", 4): around(1.0, 20.0, shift=1),
        ("nf4", 8): around(0.5, shift=2),
    }
    found = answer_of(sweep_of(tmp_path, losses, compare={"lora.rank": "each"}))
    assert found is not None
    assert ["not decided" in sentence for sentence in found.sentences] == [False, False, True]


def test_one_outcome_as_expected_and_one_not_is_partly_refuted(tmp_path: Path) -> None:
    expecting = {"compare": {**WITHIN, "expected": "better"}}
    for losses, outcome in (
        (DIFFER, Expectation.partly),
        (AGREE, Expectation.confirmed),
        ({**AGREE, ("int4", 8): [None]}, Expectation.undecided),
    ):
        found = answer_of(sweep_of(tmp_path, losses, **expecting))
        assert found is not None
        assert found.expectation is outcome


def test_of_what_is_to_be_large_more_is_better(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, AGREE, {"eval/exact_match": "maximize"})
    found = answered(sweep)
    assert found is not None
    assert not found.smaller_is_better
    assert [each.tested.difference for each in found.all if each.tested] == pytest.approx(
        [0.01, 0.03]
    )
    assert "lora.rank=8 is better than 2 by " in text_of(sweep)


# Other test rows ----------------------------------------------------------------------------------


def with_rows(sweep: SweepData, spread: float) -> SweepData:
    """Give every confirmed run scores on six rows around its own; ranks disagree about rows by `spread`."""
    shape = np.array([1.0, -1.0, 2.0, -2.0, 0.5, -0.5])
    for row in sweep.rows:
        if row["role"] == "confirmation":
            sign = 1 if row["lora.rank"] == 2 else -1
            sums = row["after.eval/loss"] + sign * spread * shape
            row["rows.eval/loss"] = RowScores(
                rows=tuple(range(6)), sums=tuple(sums.tolist()), weights=(1,) * 6
            )
    return sweep


@pytest.mark.parametrize(("spread", "otherwise"), [(0.0, False), (0.5, True)])
def test_what_other_rows_could_turn_round_is_said_beside_what_was_found(
    tmp_path: Path, spread: float, otherwise: bool
) -> None:
    sweep = with_rows(sweep_of(tmp_path, AGREE), spread)
    found = answered(sweep)
    assert found is not None
    for each, of in zip(found.all, ("nf4", "int4"), strict=True):
        scores = {
            (row["lora.rank"], row["seed"]): row["rows.eval/loss"]
            for row in sweep.rows
            if row["role"] == "confirmation" and row["quant.format"] == of
        }
        assert each.crossed == crossed_difference([(scores[8, s], scores[2, s]) for s in SEEDS])
    warned = "(on these test rows: with others it could be otherwise)"
    assert (warned in text_of(sweep)) is otherwise
    table = contrasts_table(found, "t")
    assert "interval over rows" in [column.key for column in table.columns]
    assert any("Over rows too" in note and "(6 rows;" in note for note in table.footnotes)


def test_where_only_one_place_could_turn_round_it_is_counted(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, AGREE)
    with_rows(sweep, 0.06)  # 0.1 of nf4 is less than rows vary, 0.3 of int4 is more
    assert "(on these test rows: with others it could be otherwise in 1 of 2)" in text_of(sweep)


@pytest.mark.parametrize(("spread", "otherwise"), [(0.001, False), (0.02, True)])
def test_what_is_equivalent_on_these_rows_may_not_be_on_others(
    tmp_path: Path, spread: float, otherwise: bool
) -> None:
    losses = {("nf4", 2): around(1.0), ("nf4", 8): around(1.0, shift=1)}
    sweep = with_rows(sweep_of(tmp_path, losses, compare={"lora.rank": 2}, margin=0.02), spread)
    text = text_of(sweep)
    assert "is equivalent to 2" in text
    assert ("with others it could be otherwise" in text) is otherwise


# Interactions of several, and rows without weight ---------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ((2, 4, 8), "Neither difference is shown to depend on quant (least p "),
        ((2, 4, 8, 16), "None of the 3 differences is shown to depend on quant (least p "),
    ],
)
def test_several_that_do_not_depend_are_told_in_one_sentence(tmp_path: Path, ranks, said) -> None:
    losses = {
        (of, rank): around(1.0 + 0.5 * place, 3.0, shift=(place + (of == "int4")) % 4)
        for of in ("nf4", "int4")
        for place, rank in enumerate(ranks)
    }
    sweep = sweep_of(tmp_path, losses)
    found = answered(sweep)
    assert found is not None
    raw = []
    for rank in ranks[1:]:
        gaps = [np.subtract(losses[of, rank], losses[of, 2]) for of in ("nf4", "int4")]
        raw.append(float(stats.ttest_rel(*gaps).pvalue))  # pyright: ignore
    adjusted = [p for p in holm(raw) if p is not None]
    assert list(found.interactions.values()) == pytest.approx(adjusted)
    assert min(adjusted) > 0.05
    assert f"{said}= {p_text(min(adjusted))})" in text_of(sweep)
    (note,) = [n for n in contrasts_table(found, "t").footnotes if n.startswith("Whether")]
    each = [f"{r} beside 2 {p_text(p)}" for r, p in zip(ranks[1:], adjusted, strict=True)]
    assert note.startswith(
        f"Whether a difference of lora.rank depends on quant, p: {', '.join(each)} ("
    )


def test_beside_one_that_depends_the_rest_are_others(tmp_path: Path) -> None:
    losses: Losses = {
        ("nf4", 2): around(1.0),
        ("nf4", 4): around(1.2, 3.0, shift=1),
        ("nf4", 8): around(0.5, shift=2),
        ("int4", 2): around(2.0, shift=1),
        ("int4", 4): around(2.2, 3.0, shift=2),
        ("int4", 8): around(3.5, shift=3),
    }
    text = text_of(sweep_of(tmp_path, losses))
    assert "What lora.rank=8 does beside 2 depends on quant (p <0.001)." in text
    assert "What lora.rank=4 does beside 2 is not shown to depend on quant (p = " in text


def untrained(sweep: SweepData, weights: Mapping[int, tuple[int, ...]]) -> SweepData:
    """Let no run have been trained; ranks have these weights of three rows."""
    for row in sweep.rows:
        row["optim.steps"] = 0
        of = weights[row["lora.rank"]]
        row["rows.eval/loss"] = RowScores(rows=(0, 1, 2), sums=(1.0, 2.0, 4.0), weights=of)
    return sweep


@pytest.mark.parametrize(
    ("weights", "of_rows"),
    [
        ({2: (1, 1, 2), 8: (1, 1, 2)}, True),
        ({2: (1, 1, 2), 8: (1, 2, 1)}, False),  # of other tokens
        ({2: (0, 0, 0), 8: (0, 0, 0)}, False),  # of none
    ],
)
def test_rows_are_replicates_where_both_sides_weigh_them_alike(
    tmp_path: Path, weights: Mapping[int, tuple[int, ...]], of_rows: bool
) -> None:
    losses = {("nf4", 2): around(1.0), ("nf4", 8): around(0.9, shift=1)}
    sweep = untrained(sweep_of(tmp_path, losses, compare={"lora.rank": 2}), weights)
    found = answered(sweep)
    assert found is not None
    (one,) = found.all
    assert one.of_rows is of_rows
    assert one.by_seed.keys() == ({0, 1, 2} if of_rows else set(SEEDS))


def test_a_ratio_s_rows_vary_as_the_ratio_does(tmp_path: Path) -> None:
    """The linear form by hand: d + (x - y - d w) R / W, whose mean is the difference of the ratios d."""
    losses = {("nf4", 2): around(1.0), ("nf4", 8): around(0.9, shift=1)}
    sweep = untrained(
        sweep_of(tmp_path, losses, compare={"lora.rank": 2}), {2: (1, 1, 2), 8: (1, 1, 2)}
    )
    for row in sweep.rows:
        if row["lora.rank"] == 8:
            row["rows.eval/loss"] = RowScores(
                rows=(0, 1, 2), sums=(2.0, 2.0, 3.0), weights=(1, 1, 2)
            )
    found = answered(sweep)
    assert found is not None
    (one,) = found.all
    d = 7 / 4 - 7 / 4
    expected = [
        d + (gap - d * w) * 3 / 4 for gap, w in zip((1.0, 0.0, -1.0), (1, 1, 2), strict=True)
    ]
    assert list(one.by_seed.values()) == pytest.approx(expected)
    sweep.rows[-1]["optim.steps"] = 5
    for row in sweep.rows:
        row["optim.steps"] = 5
    trained = answered(sweep)
    assert trained is not None
    assert not trained.all[0].of_rows


def test_a_question_that_cannot_be_read_or_compares_nothing_is_not_answered_so(
    tmp_path: Path,
) -> None:
    sweep = sweep_of(tmp_path, AGREE)
    assert answered(sweep) is not None
    broken = replace(sweep, asked={**sweep.asked, "space": {"quant": "choice("}})
    assert answered(broken) is None
    assert answered(replace(sweep, asked={**sweep.asked, "compare": None})) is None
    searched = [row for row in sweep.rows if row["role"] == "search"]
    assert answered(replace(sweep, rows=searched)) is None


def test_each_axis_tells_its_own_interactions(tmp_path: Path) -> None:
    compares = [WITHIN, {"quant": "nf4", "per": "lora.rank"}]
    found = answer_of(sweep_of(tmp_path, DIFFER, compare=compares))
    assert found is not None
    told = [
        sentence
        for sentence in found.sentences
        if "depend on" in sentence or "depends on" in sentence
    ]
    assert [sentence.partition(" does")[0] for sentence in told] == [
        *("What lora.rank=8", "What quant=int4")
    ]
    assert "depends on quant" in told[0]
    assert "depends on lora.rank" in told[1]


def test_a_place_whose_rows_are_not_known_does_not_hide_the_next(tmp_path: Path) -> None:
    sweep = with_rows(sweep_of(tmp_path, AGREE), 0.5)
    for row in sweep.rows:
        if row["quant.format"] == "nf4":
            row.pop("rows.eval/loss", None)
    assert "with others it could be otherwise in 1 of 2)" in text_of(sweep)


def test_equivalence_on_other_rows_is_asked_of_the_90_percent_interval(tmp_path: Path) -> None:
    """Two one-sided tests at 5 %: between the ends of the 90 and the 95 % interval there is no warning."""
    losses = {("nf4", 2): around(1.0), ("nf4", 8): around(1.0, shift=1)}
    found = answered(with_rows(sweep_of(tmp_path / "a", losses, compare={"lora.rank": 2}), 0.02))
    assert found is not None
    (one,) = found.all
    assert one.crossed is not None
    error = np.sqrt(one.crossed.variance)
    half = [stats.t(one.crossed.freedom).ppf(share) * error for share in (0.95, 0.975)]
    far = [abs(one.crossed.mean) + each for each in half]
    for place, margin in enumerate((far[0] * 0.99, (far[0] + far[1]) / 2, far[1] * 1.01)):
        sweep = sweep_of(
            tmp_path / str(place), losses, compare={"lora.rank": 2}, margin=float(margin)
        )
        text = text_of(with_rows(sweep, 0.02))
        assert "is equivalent to 2" in text
        assert ("with others it could be otherwise" in text) is (place == 0)
