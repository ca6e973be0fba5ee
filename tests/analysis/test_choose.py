"""Which figures are drawn follows from what varies: over which numbers, by which lines, which maps."""

import numpy as np
import pytest

from analysis.figures.choose import (
    configuration_figures,
    cost_figures,
    curve_figures,
    quality_figures,
)
from analysis.figures.style import Width
from analysis.frame import Row
from analysis.histories import History
from harness.records.record import MeasuredIn
from tests.analysis.rows_for_figures import Run, rows

LOSS = "eval/loss"


def titles(found: list[Row]) -> list[str]:
    """What is drawn or would be, had more been measured."""
    return [draw(Width.one_column).title for draw in quality_figures(found, [LOSS])]


@pytest.mark.parametrize(
    ("runs", "drawn"),
    [
        # Lines are formats first, then targets, ranks, alphas and blocks; a rate is never one.
        (
            [Run(rank=r, format=f, targets=(t,)) for r in (2, 8) for f in "ab" for t in "cd"],
            ["over LoRA rank, by storage format", "by target modules at equal budget"],
        ),
        (
            [Run(rank=r, targets=(t,)) for r in (2, 8) for t in "cd"],
            ["over LoRA rank, by target modules", "by target modules at equal budget"],
        ),
        (
            [Run(rank=r, lr=lr) for r in (2, 8) for lr in (1.0, 2.0)],
            [
                "over LoRA rank",
                "over learning rate, by LoRA rank",
                "by learning rate and LoRA rank",
            ],
        ),
        (
            [Run(rank=r, alpha=a) for r in (2, 8) for a in (4.0, 8.0)],
            ["over LoRA rank", "over LoRA alpha", "by LoRA alpha and LoRA rank"],
        ),
        (
            [Run(rank=r, steps=s) for r in (2, 8) for s in (1, 2)],
            [
                "over LoRA rank, by optim.steps",
                "over optim.steps, by LoRA rank",
                "by optim.steps and LoRA rank",
            ],
        ),
        (
            [Run(format=f, block=b) for f in "ab" for b in (32, 64)],
            ["over block size, by storage format", "by storage format and block size"],
        ),
        (
            [Run(rank=r, block=b) for r in (2, 8) for b in (32, 64)],
            ["over block size, by LoRA rank", "over LoRA rank, by block size"],
        ),
        (
            [Run(lr=lr, steps=s) for lr in (1.0, 2.0) for s in (1, 2)],
            ["over learning rate, by optim.steps", "over optim.steps"],
        ),
    ],
)
def test_figures_are_over_numbers_by_what_else_varies(runs: list[Run], drawn: list[str]) -> None:
    assert titles(rows(*runs)) == [f"eval loss {text}" for text in drawn]


def test_more_than_eight_levels_are_no_lines_and_three_numbers_have_figures() -> None:
    nine = rows(*(Run(rank=r, format=f"f{n}") for n in range(9) for r in (2, 8)))
    assert titles(nine)[0] == "eval loss over LoRA rank"
    eight = rows(*(Run(rank=r, format=f"f{n}") for n in range(8) for r in (2, 8)))
    assert titles(eight)[0] == "eval loss over LoRA rank, by storage format"
    many = rows(*(Run(block=b, rank=b, alpha=float(b), lr=float(b), steps=b) for b in (32, 64)))
    over = [title for title in titles(many) if " over " in title]
    assert [title.partition(" over ")[2].partition(",")[0] for title in over] == [
        *("block size", "LoRA rank", "LoRA alpha")
    ]


def test_a_probe_s_settings_vary_nothing() -> None:
    found = rows(Run(rank=2), Run(rank=8), Run(lr=9.0, steps=1, measured_in=MeasuredIn.probe))
    assert titles(found) == ["eval loss over LoRA rank"]


def test_forgetting_is_drawn_where_it_was_measured() -> None:
    found = rows(Run(rank=2, loss=1.0), Run(rank=8, loss=2.0))
    names = [draw(Width.one_column).name for draw in cost_figures(found, LOSS)]
    assert names == ["memory_parts", "eval_loss_against_memory"]
    found[1]["after.eval/forgetting_bits_per_byte"] = 0.1
    names = [draw(Width.one_column).name for draw in cost_figures(found, LOSS)]
    assert names == ["memory_parts", "eval_loss_against_memory", "eval_loss_against_forgetting"]
    assert [draw(Width.one_column).name for draw in configuration_figures(found)] == [
        *("memory_beside_throughput", "time_and_energy")
    ]


def test_curves_of_many_cells_are_drawn_by_each_factor_too() -> None:
    found = rows(*(Run(rank=r, format=f, loss=1.0 + r) for r in range(1, 6) for f in "ab"))
    steps = np.array([1.0, 2.0])
    curves = {"train/loss": (steps, steps), "eval/loss": (steps, steps)}
    histories = {r["run_id"]: History(curves=curves, num_damaged_lines=0) for r in found}
    names = [draw(Width.one_column).name for draw in curve_figures(found, histories, LOSS)]
    assert names == [
        *("curves_train_loss", "curves_train_loss_by_format", "curves_train_loss_by_lora_rank"),
        *("curves_eval_loss", "curves_eval_loss_by_format", "curves_eval_loss_by_lora_rank"),
        "series_over_steps",
    ]
    few = [draw(Width.one_column).name for draw in curve_figures(found[:4], histories, LOSS)]
    assert few == ["curves_train_loss", "curves_eval_loss", "series_over_steps"]
