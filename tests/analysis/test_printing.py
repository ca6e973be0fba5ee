"""Numbers as a table prints them: digits, signs, units of bytes, separators and words."""

import pytest

from analysis.figures.factors import printed as printed_level
from analysis.printing import bytes_unit, is_exact, printed, scale_of, status_label, with_separators
from harness.records.record import RunStatus


@pytest.mark.parametrize(
    ("values", "unit", "of_5_kib", "digits"),
    [
        ([1.0, 1023.0], "B", "5120", 0),
        ([1024.0, 2.0**40], "KiB", "5.00", 2),  # the smallest decides
        ([2.0**20 - 1], "KiB", "5.00", 2),
        ([2.0**20], "MiB", "0.00", 2),
        ([2.0**30 - 1], "MiB", "0.00", 2),
        ([2.0**30], "GiB", "0.00", 2),
        ([0.0, 2048.0], "KiB", "5.00", 2),  # nothing is no unit's
        ([-2048.0], "KiB", "5.00", 2),  # a difference
        ([0.0], "B", "5120", 0),
        ([], "B", "5120", 0),
    ],
)
def test_bytes_are_in_the_largest_unit_that_leaves_1_of_the_smallest(
    values: list[float], unit: str, of_5_kib: str, digits: int
) -> None:
    scale = scale_of("memory/peak_bytes", values)
    assert (scale.unit, scale.number(5120.0), scale.digits) == (unit, of_5_kib, digits)


@pytest.mark.parametrize(
    ("largest", "shown"),
    [
        (1.0, (1.0, "bytes")),
        (1023.0, (1.0, "bytes")),
        (1024.0, (1024.0, "KiB")),
        (2.0**20 - 1, (1024.0, "KiB")),
        (2.0**20, (2.0**20, "MiB")),
        (2.0**30 - 1, (2.0**20, "MiB")),
        (2.0**30, (2.0**30, "GiB")),
        (2.0**40, (2.0**30, "GiB")),
    ],
)
def test_a_figure_s_bytes_are_in_the_largest_unit_that_leaves_1(largest: float, shown) -> None:
    assert bytes_unit(largest) == shown


def test_other_metrics_have_their_own_digits_and_their_unit_where_the_label_lacks_it() -> None:
    loss, time = scale_of("eval/loss", [1e9]), scale_of("throughput/step_ms", [1e9])
    assert (loss.number(1.23456), loss.unit, loss.size) == ("1.2346", "nats/token", 1)
    assert time.unit == "ms"
    assert scale_of("throughput/input_tokens_per_second", [1.0]).unit == "", "its label says it"
    assert scale_of("eval/exact_match", [1.0]).unit == "fraction"


def test_a_difference_has_its_sign_and_nothing_is_not_below_nothing() -> None:
    scale = scale_of("eval/loss", [])
    assert [scale.signed(x) for x in (0.5, -0.5, 0.0, -0.00001, 0.00001)] == [
        *("+0.5000", "-0.5000"),
        *("+0.0000", "+0.0000", "+0.0000"),
    ]
    assert scale.number(-0.00001) == "0.0000"
    assert scale.number(-0.0001) == "-0.0001"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("999.5", "999.5"),
        ("1000", "1,000"),
        ("-1000.25", "-1,000.25"),
        ("-999", "-999"),
        ("-0.25", "-0.25"),
        ("0.00000001", "0.00000001"),
        ("1234567.00", "1,234,567.00"),
    ],
)
def test_thousands_are_set_apart(number: str, shown: str) -> None:
    assert with_separators(number) == shown


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("memory/base_bytes", True),
        ("memory/optimizer_bytes", True),
        ("memory/activation_bytes", False),
        ("memory/peak_bytes", False),
        ("adapter/trainable_params", True),
        ("base/bits_per_param", True),
        ("eval/loss", False),
    ],
)
def test_what_is_counted_needs_no_interval(name: str, exact: bool) -> None:
    assert is_exact(name) is exact


@pytest.mark.parametrize(
    ("value", "in_table", "in_figure"),
    [
        (None, "—", "—"),
        (True, "yes", "yes"),
        (False, "no", "no"),
        (0.0002, "0.0002", "0.0002"),
        (0.1234567, "0.123457", "0.1235"),
        (8, "8", "8"),
        (("q_proj", "v_proj"), "q_proj, v_proj", "q_proj+v_proj"),
        ("nf4", "nf4", "nf4"),
        (RunStatus.pruned, "RunStatus.pruned", "pruned"),
    ],
)
def test_a_setting_is_printed_as_it_is_read(value, in_table: str, in_figure: str) -> None:
    assert printed(value) == in_table
    assert printed_level(value) == in_figure


def test_out_of_memory_is_short() -> None:
    assert [status_label(each) for each in (RunStatus.out_of_memory, RunStatus.diverged)] == [
        *("OOM", "diverged")
    ]
