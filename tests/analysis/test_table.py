"""The comparison table: hand-computed cells, results that are no numbers, and what is refused."""

from dataclasses import dataclass
from typing import Any

import pytest

from analysis.frame import Row, flat_rows
from analysis.table import comparison_table
from harness.record import Estimate, MeasuredIn, Record, RunStatus


@dataclass(frozen=True, kw_only=True)
class Run:
    """One record in short."""

    format: str = "nf4"
    rank: int = 8
    seed: int = 0
    lr: float = 2e-4
    loss: float | None = None
    peak: float | None = None
    bits: float | None = None
    status: RunStatus = RunStatus.completed
    measured_in: MeasuredIn = MeasuredIn.solo
    out: str = "out"
    notes: tuple[str, ...] = ()

    def record(self) -> Record:
        metrics = {"memory/peak_bytes": self.peak, "base/bits_per_param": self.bits}
        after = {} if self.loss is None else {"eval/loss": _estimate(self.loss)}
        return Record(
            run_id=f"{self.format}-{self.rank}-{self.seed}-{self.measured_in.value}",
            status=self.status,
            config={
                "quant": {"format": self.format},
                "lora": {"rank": self.rank},
                "optim": {"lr": self.lr},
                "paths": {"out": self.out},
                "seed": self.seed,
            },
            metrics={name: value for name, value in metrics.items() if value is not None},
            evals={"after": after},
            measured_in=self.measured_in,
            notes=list(self.notes),
        )


def _estimate(value: float) -> Estimate:
    return Estimate(value=value, standard_error=None, n=1)


def rows(*runs: Run) -> list[Row]:
    return flat_rows(run.record() for run in runs)


def table_of(*runs: Run, **options: Any) -> list[list[str]]:
    """Return the table's lines as cells, without the rule below the header and the footnotes."""
    asked: dict[str, Any] = {"group_by": ["quant.format"], "columns": ["after.eval/loss"]} | options
    lines = comparison_table(rows(*runs), **asked).splitlines()
    lines = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


def test_mean_and_sample_deviation_over_seeds() -> None:
    # By hand: mean of 2, 3, 7 is 4; the deviation sqrt((4 + 1 + 9) / 2) = 2.6458.
    runs = [Run(seed=seed, loss=loss) for seed, loss in enumerate((2.0, 3.0, 7.0))]
    assert table_of(*runs) == [
        ["quant.format", "n", "eval loss after (nats/token) ↓"],
        ["nf4", "3", "4.0000 ± 2.6458"],
    ]


def test_the_whole_page() -> None:
    runs = [
        Run(seed=0, loss=2.0, peak=3 * 2**20, bits=4.5),
        Run(seed=1, loss=3.0, peak=3 * 2**20, bits=4.5, notes=("12 rows | cut",)),
        Run(format="int4", status=RunStatus.out_of_memory),
    ]
    columns = ["after.eval/loss", "memory/peak_bytes", "base/bits_per_param"]
    assert comparison_table(
        rows(*runs), group_by=["quant.format", "lora.rank"], columns=columns
    ) == (
        "| quant.format | lora.rank | n | eval loss after (nats/token) ↓ | peak memory ↓ | bits/param ↓ |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| int4 | 8 | 1 OOM | OOM | OOM | OOM |\n"
        "| nf4 | 8 | 2 | 2.5000 ± 0.7071 | 3.00 MiB ± 0 B | 4.50 ± 0.00 |\n"
        "\n"
        "Cells are means ± sample standard deviations over the n seeds.\n"
        "\n"
        "12 rows \\| cut (1 run).\n"
    )


def test_one_run_has_no_deviation_and_a_missing_value_is_a_dash() -> None:
    assert table_of(Run(loss=2.0), columns=["after.eval/loss", "eval/rouge_l"])[1] == [
        "nf4",
        "1",
        "2.0000",
        "—",
    ]


def test_groups_are_sorted_by_size_not_by_spelling() -> None:
    runs = [Run(rank=rank, loss=1.0) for rank in (16, 2, 128)]
    assert [line[0] for line in table_of(*runs, group_by=["lora.rank"])[1:]] == ["2", "16", "128"]


@pytest.mark.parametrize(
    ("status", "label"),
    [
        (RunStatus.out_of_memory, "OOM"),
        (RunStatus.diverged, "diverged"),
        (RunStatus.failed, "failed"),
        (RunStatus.interrupted, "interrupted"),
    ],
)
def test_runs_that_did_not_complete_are_results(status: RunStatus, label: str) -> None:
    assert table_of(Run(status=status, loss=9.0))[1] == ["nf4", f"1 {label}", label]
    # Beside completed runs they are counted and not averaged.
    runs = [Run(seed=0, loss=2.0), Run(seed=1, loss=4.0), Run(seed=2, loss=9.0, status=status)]
    assert table_of(*runs)[1] == ["nf4", f"2 + 1 {label}", "3.0000 ± 1.4142"]


def test_a_value_that_some_seeds_lack_says_its_own_n() -> None:
    runs = [Run(seed=0, loss=2.0), Run(seed=1, loss=4.0), Run(seed=2)]
    assert table_of(*runs)[1] == ["nf4", "3", "3.0000 ± 1.4142 (n=2)"]


def test_a_loss_that_is_not_finite_is_not_averaged_away() -> None:
    assert table_of(Run(seed=0, loss=2.0), Run(seed=1, loss=float("inf")))[1][2] == "not finite"


def test_a_key_that_varies_within_a_group_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"optim\.lr varies \(0\.0002, 0\.002\).*add optim\.lr"):
        table_of(Run(seed=0, loss=1.0), Run(seed=1, loss=2.0, lr=2e-3))
    table_of(
        Run(loss=1.0), Run(loss=2.0, lr=2e-3), group_by=["quant.format", "optim.lr"]
    )  # named, so not averaged
    table_of(Run(seed=0, loss=1.0), Run(seed=1, loss=2.0, out="elsewhere"))  # without effect


def test_a_key_that_one_run_lacks_is_a_difference() -> None:
    with_key, without = rows(Run(seed=0, loss=1.0), Run(seed=1, loss=2.0))
    del without["optim.lr"]
    with pytest.raises(ValueError, match=r"optim\.lr varies \(0\.0002, absent\)"):
        comparison_table(
            [with_key, without], group_by=["quant.format"], columns=["after.eval/loss"]
        )


def test_the_same_seed_twice_is_no_replicate() -> None:
    with pytest.raises(ValueError, match=r"2 runs of .* have seed 0"):
        table_of(Run(loss=1.0), Run(loss=2.0))


def test_cost_comes_from_solo_runs_and_probes() -> None:
    cohort = [
        Run(seed=seed, loss=2.0, peak=9 * 2**20, bits=4.5, measured_in=MeasuredIn.cohort)
        for seed in (0, 1)
    ]
    probe = Run(loss=8.0, peak=2**20, bits=4.5, measured_in=MeasuredIn.probe)
    columns = ["after.eval/loss", "memory/peak_bytes", "base/bits_per_param"]
    assert table_of(*cohort, probe, columns=columns)[1] == [
        "nf4",
        "2",
        "2.0000 ± 0.0000",
        "1.00 MiB (n=1)",
        "4.50 ± 0.00",
    ]
    assert table_of(*cohort, columns=columns)[1][3] == "— †"
    text = comparison_table(rows(*cohort), group_by=["quant.format"], columns=columns)
    assert "† Measured in a cohort, whose runs share one process" in text
    assert table_of(*cohort, columns=columns, show_cohort_costs=True)[1][3] == "9.00 MiB ± 0 B †"
    solo = Run(loss=2.0, peak=2**20)
    text = comparison_table(rows(solo), group_by=["quant.format"], columns=columns)
    assert "†" not in text


def test_what_is_asked_for_must_exist() -> None:
    with pytest.raises(ValueError, match=r"lora\.rnk is no configuration key.*'lora\.rank'"):
        table_of(Run(loss=1.0), group_by=["lora.rnk"])
    with pytest.raises(ValueError, match=r"column during\.eval/loss is no metric"):
        table_of(Run(loss=1.0), columns=["during.eval/loss"])
    with pytest.raises(ValueError, match="no runs to compare"):
        table_of()
