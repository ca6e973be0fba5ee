"""A prediction as a table: its numbers in their units, and each in the column where it belongs."""

from dataclasses import replace

import pytest

from harness.plan.prediction import ModuleSize, Prediction
from harness.plan.text import aligned, base_text, duration, prediction_text
from harness.records.metrics import MEMORY_PARTS

KIB = 1024


def made(device: str, cohort: int = 1, **changed: int) -> Prediction:
    """Return a prediction of 1, 2, …, 6 KiB for a run; base and constants once, the others for each run."""
    parts = {name: KIB * (n + 1) for n, name in enumerate(MEMORY_PARTS)}
    together = {name: size * (cohort if size > 2 * KIB else 1) for name, size in parts.items()}
    beside = {"transient": 10, "working": 20, "paged": 30, "library": 40, "peak": 100, **changed}
    return Prediction(
        parts=parts,
        cohort_parts=together,
        device=device,
        modules=(),
        trainable_params=7,
        logical_params=8,
        bits_per_param=4.0,
        cohort=cohort,
        **{f"{name}_bytes": KIB * size for name, size in beside.items()},  # pyright: ignore[reportArgumentType]
    )


def rows(text: str) -> list[list[str]]:
    """Return the cells, which two spaces and more divide."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()
    ]


def test_a_run_on_a_gpu_has_its_parts_and_what_lies_beside_them() -> None:
    assert rows(prediction_text(made("cuda"), 0.25, {})) == [
        ["part", "predicted"],
        ["base", "1.00 KiB"],
        ["quantization constants", "2.00 KiB"],
        ["adapter", "3.00 KiB"],
        ["gradients", "4.00 KiB"],
        ["optimizer", "5.00 KiB"],
        ["activations", "6.00 KiB"],
        ["stacked adapters, summed gradients", "20.00 KiB"],
        ["paged out of the allocator", "-30.00 KiB"],
        ["workspace of cuBLAS", "40.00 KiB"],
        ["for a moment in a pass", "10.00 KiB"],
        ["peak", "100.00 KiB"],
        ["peak with 25% margin", "125.00 KiB"],
    ]
    few = replace(made("cuda"), paged_bytes=30)
    assert ["paged out of the allocator", "-30 B"] in rows(prediction_text(few, 0.25, {}))
    none = made("cuda", working=0, paged=0, library=0)
    assert len(rows(prediction_text(none, 0.25, {}))) == 13 - 3


def test_on_a_cpu_the_parts_are_all_there_is() -> None:
    labels = [row[0] for row in rows(prediction_text(made("cpu"), 0.05, {}))]
    assert labels[-3:] == ["activations", "peak", "peak with 5% margin"]
    assert len(labels) == 9


def test_a_cohort_stands_beside_one_run_and_what_was_measured_last() -> None:
    measured = {"memory/base_bytes": 1.5 * KIB, "memory/peak_bytes": 90.4 * KIB}
    table = rows(prediction_text(made("cuda", 3), 0.05, measured))
    assert table[0] == ["part", "one run", "3 runs", "measured alone"]
    assert table[1] == ["base", "1.00 KiB", "1.00 KiB", "1.50 KiB"]
    assert table[3] == ["adapter", "3.00 KiB", "9.00 KiB"]
    assert table[-2] == ["peak", "100.00 KiB", "90.40 KiB"]  # of all runs, and of one
    assert table[-1] == ["peak with 5% margin", "105.00 KiB"]


def test_modules_are_counted_by_their_kind_and_linear_layers_by_their_name() -> None:
    def module(name: str, kind: str, params: int, constants: int = 0) -> ModuleSize:
        return ModuleSize(name, kind, params, 2 * params, constants)

    modules = [
        module("model.embed", "embedding", 1500),
        module("model.0.q_proj", "block linear", 1024, 10),
        module("model.0.norm", "norm", 3),
        module("model.1.q_proj", "block linear", 1024, 11),
        module("model.1.v_proj", "block linear", 512, 5),
    ]
    assert rows(base_text(modules)) == [
        ["base", "modules", "weights", "bytes", "constants"],
        ["embedding", "1", "1,500", "2.93 KiB", "0 B"],
        ["q_proj", "2", "2,048", "4.00 KiB", "21 B"],
        ["norm", "1", "3", "6 B", "0 B"],
        ["v_proj", "1", "512", "1.00 KiB", "5 B"],
    ]


def test_the_first_column_stands_left_and_numbers_right() -> None:
    assert aligned([("a", "long", "x"), ("bcd", "1", "")]) == ["a    long  x", "bcd     1"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "—"),
        (0.04, "0.0 s"),
        (119.9, "119.9 s"),
        (120, "2.0 min"),
        (7199, "120.0 min"),
        (7200, "2.0 h"),
        (172_799, "48.0 h"),
        (172_800, "2.0 d"),
        (604_800, "7.0 d"),
    ],
)
def test_a_duration_has_the_unit_of_which_there_are_two(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
