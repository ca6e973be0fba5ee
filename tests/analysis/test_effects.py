"""The table of effects: every change of one factor, over the combinations of the others."""

from analysis.effects import effects_table
from analysis.frame import Row, flat_row
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
