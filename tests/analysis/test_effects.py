"""The table of effects: every change of one factor, over the combinations of the others."""

from analysis.effects import effects_table
from analysis.frame import Row, flat_row
from harness.records.record import RunStatus
from tests.analysis.rows_for_figures import Run

LOSS = {2: 2.0, 8: 1.5, 32: 1.25}
RATE = {1e-3: 0.0, 1e-2: -0.5}


def rows(runs: list[Run]) -> list[Row]:
    return [flat_row(run.record()) for run in runs]


def searched() -> list[Run]:
    return [
        Run(
            rank=rank, lr=rate, seed=seed, loss=LOSS[rank] + RATE[rate] + 0.01 * seed, role="search"
        )
        for rank in LOSS
        for rate in RATE
        for seed in (0, 1)
    ]


def test_effects_are_means_over_blocks_with_everything_else_equal() -> None:
    table = effects_table(rows(searched()), "eval/loss")
    assert table is not None
    lines = [[cell.text for cell in line[:6]] for line in table.rows]
    assert lines == [
        ["LoRA rank", "2", "8", "2", "2", "-0.5000"],
        ["LoRA rank", "8", "32", "2", "2", "-0.2500"],
        ["learning rate", "0.001", "0.01", "3", "2", "-0.5000"],
    ]


def test_a_search_without_blocks_has_no_table() -> None:
    apart = [
        Run(rank=2, lr=1e-3, loss=1.0, role="search"),
        Run(rank=8, lr=1e-2, loss=2.0, role="search"),
    ]
    assert effects_table(rows(apart), "eval/loss") is None
    assert effects_table([], "eval/loss") is None


def test_every_cell_names_its_runs() -> None:
    table = effects_table(rows(searched()), "eval/loss")
    assert table is not None
    assert all(len(line[5].run_ids) == len(searched()) for line in table.rows)


def test_words_are_set_against_the_first_that_was_asked() -> None:
    """Numbers are set against their neighbours; of formats, none and int4 against nf4."""
    runs = [
        Run(format=format, seed=seed, loss=loss + 0.1 * seed, role="search")
        for format, loss in (("nf4", 1.0), ("int4", 1.5), ("none", 0.5))
        for seed in (0, 1)
    ]
    table = effects_table(rows(runs), "eval/loss")
    assert table is not None
    lines = [[cell.text for cell in line[1:6]] for line in table.rows]
    assert sorted(lines) == [
        ["nf4", "int4", "1", "2", "+0.5000"],
        ["nf4", "none", "1", "2", "-0.5000"],
    ]


def test_runs_that_failed_or_measured_nothing_are_no_part_of_an_effect() -> None:
    runs = [
        *searched(),
        Run(rank=2, lr=1e-3, seed=2, loss=99.0, role="search", status=RunStatus.diverged),
        Run(rank=8, lr=1e-3, seed=2, role="search"),
    ]
    table = effects_table(rows(runs), "eval/loss")
    assert table is not None
    assert [line[5].text for line in table.rows] == ["-0.5000", "-0.2500", "-0.5000"]


def test_one_seed_has_changes_and_no_test() -> None:
    table = effects_table(rows([run for run in searched() if run.seed == 0]), "eval/loss")
    assert table is not None
    assert "One seed: no interval and no test." in table.footnotes[0]
    assert [line[5].text for line in table.rows] == ["-0.5000", "-0.2500", "-0.5000"]
    assert {line[4].text for line in table.rows} == {"1"}


def test_what_varies_beside_the_factors_gives_no_effect() -> None:
    """Two runs of one cell and seed: something else varies, and nothing is held fixed."""
    twice = rows([Run(rank=rank, loss=LOSS[rank], role="search") for rank in (2, 8)] * 2)
    assert effects_table(twice, "eval/loss") is None


def test_a_change_of_bytes_is_in_a_unit_of_its_own_and_a_table_says_how_it_was_tested() -> None:
    runs = [
        Run(rank=rank, seed=seed, loss=LOSS[rank] + 0.01 * seed * rank, role="search")
        for rank in LOSS
        for seed in (0, 1, 2)
    ]
    table = effects_table(rows(runs), "eval/loss")
    assert table is not None
    assert [column.header for column in table.columns[:6]] == [
        *("factor", "from", "to", "blocks", "seeds"),
        "Δ eval loss (nats/token)",
    ]
    assert "With 3 pairs it leans" in table.footnotes[0]
    assert [line[3].n for line in table.rows] == [1, 1]
    assert [line[4].n for line in table.rows] == [3, 3]
    pair = [run for run in runs if run.seed < 2]
    two = effects_table(rows(pair), "eval/loss")
    assert two is not None
    assert "With 2 pairs" in two.footnotes[0]
    assert "One seed" not in two.footnotes[0]
