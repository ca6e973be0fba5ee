"""Records as flat rows."""

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.frame import (
    BEFORE,
    config_keys,
    flat_row,
    is_config_key,
    metric_key,
    named_level,
    parsed_choice,
    value_of,
)
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


def test_patterns_are_one_value_and_empty_ones_none() -> None:
    made = record()
    made.config["lora"] |= {"rank_pattern": {"q_proj": 8, "v_proj": 16.0}, "alpha_pattern": {}}
    row = flat_row(made)
    assert row["lora.rank_pattern"] == "q_proj: 8, v_proj: 16"
    assert row["lora.alpha_pattern"] is None
    assert "lora.rank_pattern.q_proj" not in row


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("false", False),
        ("null", None),
        ("nf4", "nf4"),
        ("True", "True"),
    ],
)
def test_a_spelled_choice_is_the_value_that_it_stands_for(text: str, value: object) -> None:
    found = parsed_choice(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("settings", "alpha", "ratio"),
    [
        ({"lora.rank": 4, "lora.alpha": 6.0}, 6.0, 1.5),
        ({"lora.rank": 4, "lora.alpha_over_rank": 2}, 8.0, 2.0),
        ({"lora.rank": 4}, None, None),
        ({"lora.rank": 0, "lora.alpha": 6.0}, 6.0, None),
        ({"lora.alpha": 6.0}, 6.0, None),
        ({"lora.alpha_over_rank": 2.0}, None, 2.0),
    ],
)
def test_alpha_follows_from_whichever_was_given(settings, alpha, ratio) -> None:
    assert value_of(settings, "alpha") == alpha
    assert value_of(settings, "alpha/rank") == ratio


def test_a_setting_of_blocks_has_no_meaning_where_nothing_is_rounded_in_blocks() -> None:
    row = {"quant.format": "nf4", "quant.block_size": 64, "quant.double_quant": True, "seed": 3}
    assert [value_of(row, key) for key in ("quant.block_size", "quant.double_quant")] == [64, True]
    assert value_of(row, "quant") == "nf4_dq"
    plain = row | {"quant.format": "none"}
    assert [value_of(plain, key) for key in ("quant.block_size", "quant.double_quant", "seed")] == [
        *(None, None),
        3,
    ]
    assert value_of({}, "quant") is None


def test_a_key_goes_before_an_axis_and_an_axis_before_what_follows() -> None:
    row = {"lora.rank": 8, "point": {"lora.rank": "2", "alpha": "5", "mixed": "x"}}
    assert value_of(row, "lora.rank") == 8
    assert value_of(row, "alpha") == 5
    assert value_of(row, "mixed") == "x"
    assert value_of(row, "nothing") is None
    assert value_of({"point": None}, "nothing") is None


def test_a_run_from_before_a_key_came_has_its_value_of_then() -> None:
    assert BEFORE, "keys came"
    key, value = next((key, value) for key, value in BEFORE.items() if value is not None)
    assert value_of({"lora.rank": 8}, key) == value
    assert value_of({}, key) is None, "no run of ours"


def test_an_evaluation_is_that_after_training_unless_it_says_otherwise() -> None:
    assert metric_key("eval/loss") == "after.eval/loss"
    assert metric_key("before.eval/loss") == "before.eval/loss"
    assert metric_key("memory/peak_bytes") == "memory/peak_bytes"


@pytest.mark.parametrize(
    ("key", "is_key"),
    [
        ("lora.rank", True),
        ("seed", True),
        ("after.eval/loss", False),
        ("provenance.host", False),
        ("run_id", False),
        ("trial", False),
        ("point", False),
        ("notes", False),
    ],
)
def test_a_configuration_key_is_no_metric_place_or_provenance(key: str, is_key: bool) -> None:
    assert is_config_key(key) is is_key


def test_provenance_of_a_machine_without_gpus_or_knowledge_of_them() -> None:
    for gpus, shown in (([], ""), (None, None), ([{"name": "H200"}], "H200")):
        made = record()
        made.provenance = {"gpus": gpus, "git": None, "packages": None, "sweep": None}
        row = flat_row(made)
        assert row["provenance.gpus"] == shown
        assert (row["provenance.commit"], row["provenance.dirty"]) == (None, False)
        assert row["provenance.packages"] == ""
        assert row["provenance.sweep"] is None
