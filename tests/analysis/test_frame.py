"""Records as flat rows."""

import subprocess
import sys
from pathlib import Path

from analysis.frame import config_keys, flat_row, named_level, value_of
from harness.records.record import Estimate, MeasuredIn, Record, RunStatus

REPOSITORY = Path(__file__).resolve().parents[2]


def record() -> Record:
    return Record(
        run_id="nf4-r8-s3",
        status=RunStatus.completed,
        config={
            "quant": {"format": "nf4"},
            "lora": {"rank": 8, "target_modules": ["q_proj", "v_proj"], "alpha": None},
            "seed": 3,
        },
        metrics={"memory/peak_bytes": 100, "throughput/step_ms": None},
        evals={
            "before": {"eval/loss": Estimate(value=3.75, standard_error=0.01, n=500)},
            "after": {"eval/loss": Estimate(value=2.5, standard_error=None, n=1)},
        },
        measured_in=MeasuredIn.probe,
        started_at="2026-11-21T00:00:00+00:00",
        wall_seconds=12.5,
        notes=["cut"],
    )


def test_a_row_has_one_key_per_fact() -> None:
    assert flat_row(record()) == {
        "run_id": "nf4-r8-s3",
        "status": RunStatus.completed,
        "measured_in": MeasuredIn.probe,
        "started_at": "2026-11-21T00:00:00+00:00",
        "wall_seconds": 12.5,
        "error": None,
        "notes": ["cut"],
        "role": None,
        "trial": None,
        "point": {},
        "quant.format": "nf4",
        "lora.rank": 8,
        "lora.target_modules": ("q_proj", "v_proj"),
        "lora.alpha": None,
        "seed": 3,
        "memory/peak_bytes": 100,
        "throughput/step_ms": None,
        "before.eval/loss": 3.75,
        "before.eval/loss.standard_error": 0.01,
        "before.eval/loss.n": 500,
        "after.eval/loss": 2.5,
        "after.eval/loss.standard_error": None,
        "after.eval/loss.n": 1,
    }


def test_configuration_keys_are_told_from_the_rest() -> None:
    assert config_keys(flat_row(record())) == {
        "quant.format",
        "lora.rank",
        "lora.target_modules",
        "lora.alpha",
        "seed",
    }


def test_where_a_run_came_from_is_part_of_its_row() -> None:
    found = record()
    found.provenance = {
        "git": {"commit": "abc", "dirty": True},
        "packages": {"torch": "2.13.0", "wandb": None},
        "host": "a",
        "cpu": "EPYC",
        "gpus": [{"name": "H200"}, {"name": "H200"}],
        "command": "harness run",
        "sweep": {"name": "s", "role": "search", "trial": 4},
    }
    row = flat_row(found)
    assert (row["role"], row["trial"], row["provenance.sweep"]) == ("search", 4, "s")
    assert (row["provenance.commit"], row["provenance.dirty"]) == ("abc", True)
    assert (row["provenance.packages"], row["provenance.gpus"]) == ("torch 2.13.0", "H200, H200")
    assert config_keys(row) == config_keys(flat_row(record()))


def test_rows_keep_the_order_of_the_records() -> None:
    other = record()
    other.run_id = "a"
    assert [row["run_id"] for row in map(flat_row, [record(), other])] == ["nf4-r8-s3", "a"]


def test_analysis_imports_nothing_heavy() -> None:
    code = (
        "import sys, analysis.tables, analysis.frame;"
        "print({'torch', 'transformers', 'wandb', 'pandas'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert process.stdout == "set()\n"


def test_full_fine_tuning_has_no_settings_of_an_adapter() -> None:
    made = record()
    made.config["lora"] |= {"method": "none", "rank": 8, "dropout": 0.0}
    row = flat_row(made)
    assert row["lora.method"] == "full fine-tuning"
    assert row["lora.target_modules"] == ("full fine-tuning",)
    assert row["lora.rank"] is row["lora.dropout"] is row["lora.alpha"] is None
    assert value_of(row, "alpha") is None
    assert named_level("lora", "none") == "full fine-tuning"
    assert named_level("quant", "none") == "none"


def test_what_was_predicted_and_what_a_probe_measured_stand_under_names_of_their_own() -> None:
    record = Record(
        run_id="r",
        status=RunStatus.completed,
        config={},
        metrics={"memory/peak_bytes": 3.0},
        predicted={"memory/peak_bytes": 2.0},
        alone={"memory/peak_bytes": 4.0, "throughput/step_ms": 9.0},
    )
    row = flat_row(record)
    assert {key: value for key, value in row.items() if "/" in key} == {
        "memory/peak_bytes": 3.0,
        "predicted.memory/peak_bytes": 2.0,
        "alone.memory/peak_bytes": 4.0,
        "alone.throughput/step_ms": 9.0,
    }
