"""The answer in a sentence: its wording follows from the tests, and from nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats as scipy_stats

from analysis.answer import (
    Answer,
    Expectation,
    _contrast_sentence,
    _listed,
    _within,
    answer_of,
)
from analysis.contrasts import Compared, contrasts_table
from analysis.edges import edge_notes
from analysis.sources import load_sweep
from harness.commands.status import status_command
from harness.records.record import MeasuredIn
from tests.analysis.rows_for_figures import Run
from tests.analysis.test_report import save_sweep

stats: Any = scipy_stats
SEEDS = (10, 11, 12, 13)
NOISE = (0.003, -0.002, 0.001, -0.002)


def saved(out: Path, losses: Mapping[int, Sequence[float]], **asked: Any) -> None:
    """Write a finished sweep that compares ranks, with these losses on fresh seeds."""
    runs = [
        Run(rank=rank, loss=values[0], role="search", trial=trial)
        for trial, (rank, values) in enumerate(losses.items())
    ]
    runs += [
        Run(rank=rank, seed=seed, loss=loss, role="confirmation", trial=trial, split="test")
        for trial, (rank, values) in enumerate(losses.items())
        for seed, loss in zip(SEEDS, values, strict=False)
    ]
    save_sweep(out, runs)
    state_file = out / "sweeps" / "small" / "state.json"
    state = json.loads(state_file.read_text())
    for line in state["confirmed"]:
        line["compared"] = [line["point"]]
    state_file.write_text(json.dumps(state))
    ranks = ", ".join(map(str, losses))
    question = {"name": "small", "question": "Which?", "space": {"lora.rank": f"choice({ranks})"}}
    (out / "sweeps" / "small" / "sweep.yaml").write_text(yaml.safe_dump(question | asked))


def answer(out: Path, losses: Mapping[int, Sequence[float]], **asked: Any) -> Answer:
    saved(out, losses, **asked)
    found = answer_of(load_sweep(out, "small"))
    assert found is not None
    return found


def around(mean: float, spread: float = 1.0, shift: int = 0) -> list[float]:
    noise = NOISE[shift:] + NOISE[:shift]
    return [mean + spread * each for each in noise]


COMPARE = {"lora.rank": "steps"}


@pytest.mark.parametrize(
    ("second", "expected", "words", "outcome"),
    [
        (around(1.0, shift=1), "equivalent", "is equivalent to 2 (Δ", Expectation.confirmed),
        (around(0.9, shift=1), "equivalent", "is better than 2 by 0.1000", Expectation.refuted),
        (around(1.1, shift=1), "worse", "is worse than 2 by 0.1000", Expectation.confirmed),
        (around(1.1, shift=1), "better", "is worse than 2", Expectation.refuted),
        (
            around(1.01, 30.0, shift=2),
            "equivalent",
            "is not told apart from 2: not decided (Δ",
            Expectation.undecided,
        ),
    ],
)
def test_the_wording_and_the_outcome_follow_from_the_test(
    tmp_path, second, expected, words, outcome
) -> None:
    found = answer(
        tmp_path,
        {2: around(1.0), 8: second},
        compare=COMPARE | {"expected": expected},
        margin=0.02,
    )
    assert words in found.text
    assert "lora.rank=8" in found.text
    assert found.expectation is outcome
    assert f"The expectation is {outcome.value}." in found.text


def test_levels_that_are_not_told_apart_share_a_sentence_behind_what_is_decided(tmp_path) -> None:
    losses = {
        2: around(1.0),
        4: around(1.0, 10, shift=2),
        8: around(0.5, shift=1),
        16: around(1.0, 20, shift=3),
    }
    text = answer(tmp_path, losses, compare={"lora.rank": 2}, margin=0.02).text
    decided, undecided = text.split(". lora.rank=")
    assert decided.startswith("lora.rank=8 is better than 2 by 0.5")
    assert undecided.startswith("4 and 16 are not told apart from 2: not decided (Δ ")
    steps = answer(tmp_path / "steps", losses, compare=COMPARE, margin=0.02).text
    assert "lora.rank=8 is better than 4 by" in steps
    assert "lora.rank=16 is worse than 8 by" in steps
    assert "lora.rank=4 is not told apart from 2: not decided (Δ " in steps


def test_what_is_not_decided_says_how_many_seeds_would(tmp_path) -> None:
    found = answer(
        tmp_path, {2: around(1.0), 8: around(1.0, 10, shift=2)}, compare=COMPARE, margin=0.02
    )
    assert "n would have to be about" in found.text


def test_a_difference_within_the_margin_is_both_better_and_as_good_as_expected(tmp_path) -> None:
    close = [loss - 0.01 for loss in around(1.0)]
    close[0] += 0.0005  # not the very same differences
    found = answer(
        tmp_path,
        {2: around(1.0), 8: close},
        compare=COMPARE | {"expected": "equivalent"},
        margin=0.02,
    )
    assert "is better than 2, within the margin, by" in found.text
    assert found.expectation is Expectation.confirmed


def test_without_a_comparison_the_best_are_named(tmp_path) -> None:
    found = answer(tmp_path, {2: around(1.0), 8: around(1.001, shift=1), 32: around(3.0, shift=2)})
    assert found.expectation is None
    assert "Best eval loss of 3 confirmed cells" in found.text
    assert "1 of the others may be as good or better" in found.text
    assert "lora.rank=32" not in found.text


def test_with_several_objectives_the_front_is_named(tmp_path) -> None:
    saved(tmp_path, {2: around(1.0), 8: around(0.9, shift=1), 32: around(1.1, shift=2)})
    state_file = tmp_path / "sweeps" / "small" / "state.json"
    state = json.loads(state_file.read_text())
    state["objectives"] = {"eval/loss": "minimize", "adapter/trainable_params": "minimize"}
    for line in (*state["trials"], *state["confirmed"]):
        if line["values"] is not None and isinstance(line["values"], list):
            line["values"] = [*line["values"], 1.0]
        elif line["values"] is not None:
            line["values"]["adapter/trainable_params"] = [1.0]
    state_file.write_text(json.dumps(state))
    for record_file in (tmp_path / "runs").glob("*/run.json"):
        record = json.loads(record_file.read_text())
        record["metrics"]["adapter/trainable_params"] = 1000 * record["config"]["lora"]["rank"]
        record_file.write_text(json.dumps(record))
    found = answer_of(load_sweep(tmp_path, "small"))
    assert found is not None
    assert found.text.startswith(
        "2 of 3 confirmed cells are on the front of eval loss and trainable"
    )
    assert found.text.index("lora.rank=2") < found.text.index("lora.rank=8")
    assert "lora.rank=32" not in found.text


def test_a_level_that_was_not_confirmed_is_named(tmp_path) -> None:
    saved(tmp_path, {2: around(1.0), 8: around(0.9, shift=1)}, compare={"lora.rank": 2})
    file = tmp_path / "sweeps" / "small" / "sweep.yaml"
    file.write_text(file.read_text().replace("choice(2, 8)", "choice(2, 8, 64)"))
    found = answer_of(load_sweep(tmp_path, "small"))
    assert found is not None
    assert "lora.rank=64 is not compared with 2 (no cell with lora.rank=64" in found.text
    assert found.answered is not None
    table = contrasts_table(found.answered, "t")
    assert table.rows[0][-1].text == "better"


def test_one_confirmed_cell_is_set_beside_no_other(tmp_path) -> None:
    text = answer(tmp_path, {8: [0.9, 1.1]}).text
    assert (
        text
        == "The one confirmed cell, lora.rank=8, has eval loss 1.0000 nats/token, the mean of n = 2."
    )


def test_status_says_the_same_sentence(tmp_path, capsys) -> None:
    found = answer(tmp_path, {2: around(1.0), 8: around(0.9, shift=1)}, compare=COMPARE)
    status_command(["small", f"paths.out={tmp_path}"], as_json=False)
    assert f"Found: {found.text}" in capsys.readouterr().out


def test_a_best_on_the_edge_is_flagged_with_the_command_that_goes_beyond(tmp_path) -> None:
    saved(tmp_path, {2: around(1.0), 4: around(0.8), 8: around(0.9, shift=1)})
    state_file = tmp_path / "sweeps" / "small" / "state.json"
    state = json.loads(state_file.read_text())
    state["confirmed"] = [line for line in state["confirmed"] if line["point"]["lora.rank"] == "8"]
    state_file.write_text(json.dumps(state))
    (note,) = edge_notes(load_sweep(tmp_path, "small"))
    assert "lora.rank=8, the largest that was tried" in note
    kept = tmp_path / "sweeps" / "small" / "sweep.yaml"
    assert f"harness sweep {kept} 'lora.rank=choice(2, 4, 8, 16)' name=small_wider" in note


@pytest.mark.parametrize(
    ("axis", "best", "end", "beyond"),
    [
        ("interval(0.001, 0.01)", "0.0099", "0.01, the largest", "interval(0.001, 0.02)"),
        ("interval(0.001, 0.01)", "0.0011", "0.001, the smallest", "interval(0.0005, 0.01)"),
        ("interval(0.001, 0.01)", "0.009", None, None),
        (
            "interval(0, 100)",
            "95",
            "100, the largest",
            "interval(0, 200)",
        ),  # a twentieth, and no more
        ("interval(0, 100)", "94.9", None, None),
        (
            "tag(log, interval(0.001, 0.01))",
            "0.009",
            "0.01, the",
            "tag(log, interval(0.001, 0.02))",
        ),
        ("tag(log, interval(0.001, 0.01))", "0.008", None, None),
        ("int(interval(2, 64))", "2", "2, the smallest", "int(interval(1, 64))"),
        ("int(interval(2, 64))", "62", "64, the largest", "int(interval(2, 128))"),
        (
            "choice(0.008, 0.002, 0.001)",
            "0.001",
            "0.001, the",
            "choice(0.0005, 0.001, 0.002, 0.008)",
        ),
        (
            "choice(0.008, 0.002, 0.001)",
            "0.008",
            "0.008, the",
            "choice(0.001, 0.002, 0.008, 0.032)",
        ),
        ("choice(0.008, 0.002, 0.001)", "0.002", None, None),
        ("choice(0, 8)", "8", "8, the largest", "choice(0, 8, 16)"),
        ("choice(8)", "8", None, None),
        ("choice(nf4, int4)", "nf4", None, None),
    ],
)
def test_what_lies_beyond_an_edge_is_an_axis_of_the_same_kind(
    tmp_path, axis, best, end, beyond
) -> None:
    key = "lora.alpha"
    saved(tmp_path, {2: around(1.0)})
    directory = tmp_path / "sweeps" / "small"
    state = json.loads((directory / "state.json").read_text())
    state["confirmed"] = [{**state["confirmed"][0], "point": {key: best}, "compared": []}]
    (directory / "state.json").write_text(json.dumps(state))
    question = {"name": "small", "question": "Which?", "space": {key: axis}}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(question))
    notes = edge_notes(load_sweep(tmp_path, "small"))
    if end is None:
        assert notes == []
        return
    (note,) = notes
    assert f"{key}={end}" in note
    assert "best for trial 0:" in note
    assert f"'{key}={beyond}'" in note


@pytest.mark.parametrize(
    ("axis", "best", "beyond"),
    [
        ("choice(1, 2)", "1", None),
        ("choice(2, 4)", "2", "choice(1, 2, 4)"),
        ("choice(3, 4)", "3", "choice(2, 3, 4)"),
        ("choice(3, 5)", "5", "choice(3, 5, 9)"),
    ],
)
def test_beyond_whole_numbers_are_whole_ones_from_one_on(tmp_path, axis, best, beyond) -> None:
    saved(tmp_path, {2: around(1.0)})
    directory = tmp_path / "sweeps" / "small"
    state = json.loads((directory / "state.json").read_text())
    state["confirmed"] = [{**state["confirmed"][0], "point": {"lora.rank": best}, "compared": []}]
    (directory / "state.json").write_text(json.dumps(state))
    question = {"name": "small", "question": "Which?", "space": {"lora.rank": axis}}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(question))
    notes = edge_notes(load_sweep(tmp_path, "small"))
    assert len(notes) == (beyond is not None)
    assert all(f"'lora.rank={beyond}'" in note for note in notes)


@pytest.mark.parametrize(
    ("cases", "best", "said"),
    [
        (
            {"low": ["optim.lr=0.01"], "high": ["optim.lr=0.02"]},
            "high",
            "(optim.lr=0.02), the largest",
        ),
        (
            {"low": ["optim.lr=0.02"], "high": ["optim.lr=0.01"]},
            "high",
            "(optim.lr=0.01), the smallest",
        ),
        ({"a": ["optim.lr=0.01"], "high": ["lora.rank=2"]}, "high", None),
        ({"a": ["optim.lr=0.01"], "high": ["optim.lr=0.02", "lora.rank=2"]}, "high", None),
        ({"a": ["quant=nf4"], "high": ["quant=int4"]}, "high", None),
        ({"a": ["lora.rank=8"], "high": []}, "high", None),
    ],
)
def test_cases_of_one_number_have_an_edge(tmp_path, cases, best, said) -> None:
    saved(tmp_path, {2: around(1.0)})
    directory = tmp_path / "sweeps" / "small"
    state = json.loads((directory / "state.json").read_text())
    state["confirmed"] = [{**state["confirmed"][0], "point": {"rate": best}, "compared": []}]
    (directory / "state.json").write_text(json.dumps(state))
    question = {"name": "small", "question": "Which?", "space": {"rate": {"cases": cases}}}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(question))
    notes = edge_notes(load_sweep(tmp_path, "small"))
    assert [f"rate=high {said}" in note for note in notes] == ([True] if said else [])
    assert all("A case more of rate" in note for note in notes)


def test_an_axis_that_is_compared_has_no_edge(tmp_path) -> None:
    losses = {2: around(1.0), 4: around(0.8)}
    saved(tmp_path, losses, compare={"lora.rank": "steps"})
    assert edge_notes(load_sweep(tmp_path, "small")) == []
    saved(tmp_path, losses, compare=[{"optim.lr": 0.1, "per": "lora.rank"}])
    assert edge_notes(load_sweep(tmp_path, "small")) == []


def test_how_many_cells_of_a_level_were_tried_is_said_where_it_is_unequal(tmp_path) -> None:
    losses = {2: around(1.0), 4: around(0.9, shift=2), 8: around(0.8, shift=1)}
    found = answer(tmp_path, losses, compare=COMPARE)
    assert found.answered is not None
    notes = contrasts_table(found.answered, "t").footnotes
    assert "Tuning: none, a level has one cell." in notes
    state_file = tmp_path / "sweeps" / "small" / "state.json"
    state = json.loads(state_file.read_text())
    (first, *others) = state["trials"]
    again = {**first, "point": {**first["point"], "optim.lr": "0.1"}, "number": 7}
    failed = {**again, "point": {**first["point"], "optim.lr": "0.2"}, "status": "failed"}
    state_file.write_text(json.dumps(state | {"trials": [first, again, failed, *others]}))
    found = answer_of(load_sweep(tmp_path, "small"))
    assert found is not None
    assert found.answered is not None
    assert [each.tried for each in found.answered.all] == [(1, 2), (1, 1)]
    (tuning,) = [n for n in contrasts_table(found.answered, "t").footnotes if "Tuning" in n]
    assert "the best of 1 to 2 cells of the search for each level (unequal" in tuning


# Whole sentences, with numbers by hand -------------------------------------------------------------


def ends(differences: Sequence[float]) -> tuple[float, float]:
    found = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return float(found.low), float(found.high)


def minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def test_what_is_decided_is_told_with_its_size_and_interval_without_signs(tmp_path) -> None:
    losses = {2: around(1.0), 8: around(0.9, shift=1)}
    found = answer(tmp_path, losses, compare=COMPARE)
    low, high = ends(minus(losses[8], losses[2]))
    assert found.text == (
        f"lora.rank=8 is better than 2 by 0.1000 nats/token [{-high:.4f}, {-low:.4f}]."
    )


def test_what_is_equivalent_is_told_with_its_signs(tmp_path) -> None:
    losses = {2: around(1.0), 8: around(1.0005, shift=1)}
    found = answer(tmp_path, losses, compare=COMPARE, margin=0.02)
    low, high = ends(minus(losses[8], losses[2]))
    assert found.text == (
        f"lora.rank=8 is equivalent to 2 (Δ +0.0005 nats/token) [{low:+.4f}, {high:+.4f}]."
    )


def test_a_table_has_both_tests_of_each_line(tmp_path) -> None:
    losses = {2: around(1.0), 8: around(1.01, 5, shift=1), 16: [1.0]}
    found = answer(tmp_path, losses, compare={"lora.rank": 2}, margin=0.02)
    assert found.answered is not None
    table = contrasts_table(found.answered, "t")
    keys = [column.key for column in table.columns]
    one, other = (dict(zip(keys, line, strict=True)) for line in table.rows)
    differences = minus(losses[8], losses[2])
    p = stats.ttest_1samp(differences, 0).pvalue
    lower = stats.ttest_1samp(differences, -0.02, alternative="greater").pvalue
    upper = stats.ttest_1samp(differences, 0.02, alternative="less").pvalue
    assert one["p"].text == f"{p:.3f}"
    assert one["p equivalence"].text == f"{max(lower, upper):.3f}"
    assert (other["p"].text, other["p equivalence"].text) == ("—", "—"), "one pair is not tested"
    assert (one["n"].text, other["n"].text) == ("4", "1")
    notes = " ".join(table.footnotes)
    assert "within ±0.02 nats/token, the question's margin" in notes
    assert "Two-sided" not in notes, "not of every line"


def test_what_is_not_decided_is_told_with_the_seeds_that_would(tmp_path) -> None:
    losses = {2: around(1.0), 8: around(1.0, 10, shift=2)}
    found = answer(tmp_path, losses, compare=COMPARE, margin=0.02)
    differences = minus(losses[8], losses[2])
    low, high = ends(differences)
    assert found.answered is not None
    (one,) = found.answered.all
    assert one.tested is not None
    needed = one.tested.needed
    assert needed is not None
    assert found.text == (
        f"lora.rank=8 is not told apart from 2: not decided (Δ {sum(differences) / 4:+.4f} nats/token "
        f"[{low:+.4f}, {high:+.4f}]; n would have to be about {needed}, not 4)."
    )
    table = contrasts_table(found.answered, "t")
    assert table.rows[0][-1].text == f"not decided: n ≈ {needed}"
    assert table.columns[-1].key == "verdict"


def test_one_seed_has_a_difference_and_no_interval(tmp_path) -> None:
    found = answer(tmp_path, {2: [1.0], 8: [0.75]}, compare=COMPARE)
    assert found.text == (
        "lora.rank=8 is not told apart from 2: not decided (Δ -0.2500 nats/token)."
    )
    assert found.answered is not None
    table = contrasts_table(found.answered, "t")
    assert [cell.text for cell in table.rows[0]] == [
        *("8", "2", "1", "-0.2500"),
        *("—", "—", "not decided"),
    ]
    assert not any("Two-sided" in note for note in table.footnotes)


def test_several_that_are_not_told_apart_are_listed_with_the_hull_of_their_intervals(
    tmp_path,
) -> None:
    losses = {2: around(1.0), 4: around(1.02, 20, shift=2), 8: around(1.01, 20, shift=1)}
    found = answer(tmp_path, losses, compare=COMPARE)
    assert found.answered is not None
    tested = [each.tested for each in found.answered.all]
    lows = [each.low for each in tested if each is not None and each.low is not None]
    highs = [each.high for each in tested if each is not None and each.high is not None]
    sizes = sorted([minus(losses[4], losses[2]), minus(losses[8], losses[4])], key=sum)
    first, last = (sum(each) / 4 for each in sizes)
    assert found.text.startswith(
        "lora.rank: 4 from 2 and 8 from 4 are not told apart: not decided "
        f"(Δ {first:+.4f} to {last:+.4f} nats/token [{min(lows):+.4f}, {max(highs):+.4f}]"
    )


@pytest.mark.parametrize(
    ("words", "listed"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_words_are_listed_as_one_says_them(words: list[str], listed: str) -> None:
    assert _listed(words) == listed


def test_places_of_two_axes_are_spelled_out(tmp_path) -> None:
    found = answer(tmp_path, {2: around(1.0), 8: around(0.9, shift=1)}, compare=COMPARE)
    assert found.answered is not None
    (one,) = found.answered.all

    def within(**axes: str) -> Compared:
        return replace(one, contrast=replace(one.contrast, within=axes))

    both = [within(quant="nf4", lr="1"), within(quant="int4", lr="2")]
    spelled = "quant=nf4, lr=1; quant=int4, lr=2"
    assert _within(both, 2) == f" within each of 2 ({spelled})"
    assert _within(both, 3) == f" within {spelled}"
    assert (
        _within([within(quant="nf4"), within(quant="int4")], 2) == " within each quant (nf4, int4)"
    )
    assert _within([within(quant="nf4"), within(quant="int4")], 3) == " within quant=nf4 and int4"
    assert _within([within(quant="nf4")], 1) == " within quant=nf4"
    assert _within([one], 1) == ""


# Without contrasts ---------------------------------------------------------------------------------


def test_one_seed_a_cell_says_nothing_of_the_others(tmp_path) -> None:
    text = answer(tmp_path, {2: [1.0], 8: [0.75]}).text
    assert text == (
        "Best eval loss of 2 confirmed cells: 0.7500 nats/token with lora.rank=8; one seed a cell, so "
        "nothing says whether it is better than the others."
    )


def test_others_are_set_apart_or_named_with_their_means(tmp_path) -> None:
    apart = answer(tmp_path / "a", {2: around(3.0), 8: around(1.0, shift=1)}).text
    assert apart == (
        "Best eval loss of 2 confirmed cells: 1.0000 nats/token with lora.rank=8; the others are set "
        "apart from it."
    )
    tied = answer(tmp_path / "b", {2: around(1.001), 8: around(1.0, shift=1)}).text
    assert tied.endswith(
        "with lora.rank=8; 1 of the others may be as good or better: 1.0010 with lora.rank=2."
    )


def test_nothing_confirmed_has_no_answer(tmp_path) -> None:
    saved(tmp_path, {2: around(1.0), 8: around(0.9)})
    sweep = load_sweep(tmp_path, "small")
    for row in sweep.rows_of("confirmation"):
        del row["after.eval/loss"]
    assert answer_of(sweep) is None
    sweep.objectives["adapter/trainable_params"] = "minimize"
    assert answer_of(sweep) is None, "no cell has both"


def test_a_point_without_axes_is_its_trial_and_the_largest_score_is_best(tmp_path) -> None:
    saved(tmp_path, {2: [1.0], 8: [0.75]})
    sweep = load_sweep(tmp_path, "small")
    for row in sweep.rows:
        row["point"] = {}
    sweep.objectives["eval/loss"] = "maximize"
    found = answer_of(sweep)
    assert found is not None
    assert found.text.startswith(
        "Best eval loss of 2 confirmed cells: 1.0000 nats/token with trial 0;"
    )


def test_the_front_of_one_is_named_with_both_its_means(tmp_path) -> None:
    saved(tmp_path, {2: around(1.0), 8: around(0.5, shift=1)})
    sweep = load_sweep(tmp_path, "small")
    sweep.objectives["memory/peak_bytes"] = "minimize"
    for row in sweep.rows:
        row["measured_in"] = MeasuredIn.cohort  # whose own peak says nothing of the run
        row["memory/peak_bytes"] = 1.0
        row["alone.memory/peak_bytes"] = 2048.0 if row["lora.rank"] == 8 else 4096.0
    found = answer_of(sweep)
    assert found is not None
    assert found.text == (
        "1 of 2 confirmed cells is on the front of eval loss and peak memory, by the means: 0.5000 "
        "nats/token and 2.00 KiB with lora.rank=8."
    )


@pytest.mark.parametrize(
    ("space", "points", "said"),
    [
        # Words have no edge, whole numbers none below 1; what comes after them has.
        (
            {"quant": "choice(nf4, int4)", "lora.rank": "choice(1, 2)"},
            [{"quant": "nf4", "lora.rank": "1"}, {"quant": "nf4", "lora.rank": "2"}],
            ["lora.rank=2, the largest"],
        ),
        (
            {"lora.rank": "choice(2, 4)", "optim.lr": "choice(0.1, 0.2)"},
            [{"lora.rank": "2", "optim.lr": "0.2"}],
            ["lora.rank=2, the smallest", "optim.lr=0.2, the largest"],
        ),
        ({"lora.rank": "choice("}, [{"lora.rank": "2"}], []),
        ({"lora.rank": "choice(2, 4)"}, [{"optim.lr": "0.1"}], []),
    ],
)
def test_every_edge_of_every_axis_is_named(tmp_path, space, points, said) -> None:
    saved(tmp_path, {2: around(1.0)})
    sweep = load_sweep(tmp_path, "small")
    lines = [{"point": point, "trial": n, "compared": []} for n, point in enumerate(points)]
    notes = edge_notes(
        replace(sweep, asked={"space": space}, state={**sweep.state, "confirmed": lines})
    )
    assert [note.partition(" that was tried")[0] for note in notes] == said


def test_the_levels_that_end_at_an_edge_are_named_together(tmp_path) -> None:
    saved(tmp_path, {2: around(1.0)})
    sweep = load_sweep(tmp_path, "small")
    lines = [
        {"point": {"optim.lr": rate, "quant": of}, "trial": 3, "compared": compared}
        for of, rate, compared in (
            ("nf4", "0.2", [{"quant": "nf4"}]),
            ("int4", "0.1", [{"quant": "int4"}]),
            ("fp4", "0.2", None),
        )
    ]
    asked = {"space": {"optim.lr": "choice(0.1, 0.2)"}, "compare": {"quant": "each"}}
    notes = edge_notes(replace(sweep, asked=asked, state={**sweep.state, "confirmed": lines}))
    assert [note.partition("is the best for ")[2].partition(":")[0] for note in notes] == [
        *("quant=int4", "quant=nf4; trial 3")
    ]


def test_of_three_sizes_the_least_and_the_largest_are_told(tmp_path) -> None:
    sizes = {4: 0.3, 8: 0.1, 16: 0.2}
    losses = {2: around(1.0)} | {
        rank: around(1 - size, shift=place) for place, (rank, size) in enumerate(sizes.items())
    }
    found = answer(tmp_path / "a", losses, compare={"lora.rank": 2})
    assert found.answered is not None
    one, *_ = found.answered.all
    tested = [each.tested for each in found.answered.all if each.tested is not None]
    lows = sorted(-each.high for each in tested if each.high is not None)
    highs = sorted(-each.low for each in tested if each.low is not None)
    text = _contrast_sentence(found.answered, "lora.rank", "8", "2", found.answered.all)
    assert text == (
        f"lora.rank=8 is better than 2 by 0.1000 to 0.3000 nats/token [{lows[0]:.4f}, {highs[-1]:.4f}]."
    )
    assert one.contrast.level == "4"
    wild = {2: around(1.0)} | {
        rank: around(1 - size / 5, 30.0, shift=place)
        for place, (rank, size) in enumerate(sizes.items())
    }
    undecided = answer(tmp_path / "b", wild, compare={"lora.rank": 2})
    assert undecided.answered is not None
    known = [each.tested for each in undecided.answered.all if each.tested is not None]
    differences = sorted(each.difference for each in known)
    needed = [each.needed for each in known if each.needed is not None]
    assert undecided.text.startswith(
        "lora.rank=4, 8 and 16 are not told apart from 2: not decided "
        f"(Δ {differences[0]:+.4f} to {differences[2]:+.4f} nats/token ["
    )
    assert len(set(needed)) > 1
    assert undecided.text.endswith(f"; n would have to be about {max(needed)}, not 4).")


def test_three_counts_of_tried_cells_are_told_from_the_least_to_the_most(tmp_path) -> None:
    saved(
        tmp_path,
        {2: around(1.0), 4: around(0.9, shift=1), 8: around(0.8, shift=2)},
        compare=COMPARE,
    )
    sweep = load_sweep(tmp_path, "small")
    trials = [
        {
            "number": 10 * rank + n,
            "point": {"lora.rank": str(rank), "x": str(n)},
            "status": "completed",
        }
        for rank, count in ((2, 5), (4, 3), (8, 4))
        for n in range(count)
    ]
    again = replace(sweep, state={**sweep.state, "trials": trials})
    found = answer_of(again)
    assert found is not None
    assert found.answered is not None
    assert [each.tried for each in found.answered.all] == [(3, 5), (4, 3)]
    notes = contrasts_table(found.answered, "t").footnotes
    assert any(
        note.startswith("Tuning: the best of 3 to 5 cells of the search for each level (unequal")
        for note in notes
    )
    even = [trial for trial in trials if int(trial["point"]["x"]) < 3]
    found = answer_of(replace(sweep, state={**sweep.state, "trials": even}))
    assert found is not None
    assert found.answered is not None
    notes = contrasts_table(found.answered, "t").footnotes
    assert "Tuning: the best of 3 cells of the search for each level." in notes
