"""Figures of costs, contrasts and dependence: what is drawn equals hand-made numbers."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from analysis.contrasts import answered
from analysis.figures.contrasts import contrast_intervals
from analysis.figures.costs import (
    STEP_JOULES,
    STEP_MS,
    THROUGHPUT,
    memory_beside_throughput,
    runs_with_series,
    series_over_steps,
    time_and_energy,
)
from analysis.figures.dependence import dependence_panels
from analysis.figures.search import TrialPoint
from analysis.figures.style import COLOURS, Drawing, Width
from analysis.frame import Row
from analysis.histories import History
from analysis.sources import load_sweep
from analysis.surrogate import partial_dependence
from harness.records.record import MeasuredIn
from tests.analysis.rows_for_figures import Run, rows
from tests.analysis.test_answer import around, saved

LOSS = "eval/loss"


def measured(**of_rank: dict[int, float]) -> list[Row]:
    """Return runs alone of ranks 2 and 8 at two rates, which cost the same, with these metrics by rank."""
    names = {"tokens": THROUGHPUT, "ms": STEP_MS, "joules": STEP_JOULES}
    runs = [
        Run(rank=rank, lr=lr, loss=1.0, parts=(10.0 * rank, 1, 1, 1, 1, 7), role="search")
        for rank in (8, 2)
        for lr in (1e-3, 1e-2)
    ]
    found = rows(*runs)
    for row in found:
        for name, values in of_rank.items():
            if row["lora.rank"] in values:
                row[names[name]] = values[row["lora.rank"]]
    return found


def panels(drawing: Drawing) -> list[Axes]:
    assert drawing.figure is not None, drawing.reason
    return drawing.figure.axes


def widths(axes: Axes) -> list[list[float]]:
    """Return the lengths of an axes' bars, by container."""
    return [[bar.get_width() for bar in bars] for bars in axes.containers]  # pyright: ignore


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize("width", list(Width))
def test_memory_by_part_lies_beside_the_throughput_of_the_same_configuration(width: Width) -> None:
    found = measured(tokens={2: 300.0, 8: 200.0})
    drawing = memory_beside_throughput(found, width=width)
    left, right = panels(drawing)
    assert labels(left) == ["r=2", "r=8"]
    assert [sum(lengths) for lengths in zip(*widths(left), strict=True)] == [31.0, 91.0]
    assert widths(right) == [[300.0, 200.0]]
    assert left.yaxis_inverted()
    assert right.yaxis_inverted(), "one axis for both"
    assert right.get_xlabel() == "throughput (tokens/s) ↑" or "tokens/s" in right.get_xlabel()
    assert drawing.figure is not None
    assert drawing.figure.get_figwidth() == width.value
    assert set(drawing.run_ids) <= {row["run_id"] for row in found}
    assert len(drawing.run_ids) == 2, "rates cost nothing: one of them stands for both"


def test_the_time_of_a_step_lies_beside_its_energy_where_a_device_told_it() -> None:
    with_energy = time_and_energy(measured(ms={2: 10.0, 8: 20.0}, joules={8: 3.0}))
    left, right = panels(with_energy)
    assert (widths(left), widths(right)) == ([[10.0, 20.0]], [[0.0, 3.0]])
    assert labels(left) == ["r=2", "r=8"]
    assert right.yaxis_inverted(), "one axis for both"
    assert "energy (NVML)" in with_energy.caption
    alone = time_and_energy(measured(ms={2: 10.0, 8: 20.0}))
    (only,) = panels(alone)
    assert widths(only) == [[10.0, 20.0]]
    assert labels(only) == ["r=2", "r=8"]
    assert only.yaxis_inverted()
    assert "No device told its energy." in alone.caption


def test_costs_that_nobody_measured_alone_are_not_drawn() -> None:
    shared = rows(Run(rank=2, loss=1.0, measured_in=MeasuredIn.cohort))
    shared[0] |= {THROUGHPUT: 5.0, STEP_MS: 1.0}
    assert memory_beside_throughput(shared).reason == (
        "no run or probe alone measured its throughput"
    )
    assert time_and_energy(shared).reason == "no run or probe alone measured its step time"
    many = rows(*(Run(rank=rank, loss=1.0, parts=(1, 1, 1, 1, 1, 1)) for rank in range(1, 18)))
    for row in many:
        row |= {THROUGHPUT: 5.0, STEP_MS: 1.0}
    for draw in (memory_beside_throughput, time_and_energy):
        assert draw(many).reason == "17 different bars; a figure shows 16"
        assert draw(many[:16]).figure is not None


def series(number: float, *, sharing: float | None, peak: bool = True) -> History:
    steps = np.array([1.0, 2.0, 3.0])
    curves = {
        "train/loss": (steps, number + steps),
        THROUGHPUT: (steps, 100 * number + steps),
        "memory/allocated_bytes": (steps, 2560.0 * steps),
    }
    if peak:
        curves["memory/peak_bytes"] = (steps, 4608.0 * steps)
    if sharing is not None:
        curves["cohort/runs"] = (steps, np.array([1.0, sharing, 1.0]))
    return History(curves=curves, num_damaged_lines=0)


def heights(axes: Axes) -> list[list[float]]:
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines]


def test_series_of_the_best_runs_are_drawn_in_three_panels() -> None:
    runs = rows(*(Run(rank=rank, seed=1, loss=float(rank)) for rank in (4, 2, 1, 8, 3, 7, 9)))
    assert [row["lora.rank"] for row in runs if row["run_id"] in runs_with_series(runs, LOSS)] == [
        *(4, 2, 1, 8, 3, 7)
    ]
    of_rank = {row["lora.rank"]: row["run_id"] for row in runs}
    histories = {
        of_rank[1]: series(1.0, sharing=1.0),
        of_rank[2]: series(2.0, sharing=3.0),
        of_rank[9]: series(9.0, sharing=1.0),
        of_rank[3]: History(curves={}, num_damaged_lines=0),
    }
    drawing = series_over_steps(runs, histories, objective=LOSS)
    assert drawing.run_ids == (of_rank[1], of_rank[2])
    loss, tokens, memory = panels(drawing)
    assert heights(loss) == [[2.0, 3.0, 4.0], [3.0, 4.0, 5.0]]
    assert heights(tokens) == [[101.0, 102.0, 103.0], [201.0, 202.0, 203.0]]
    assert heights(memory) == [[4.5, 9.0, 13.5], [4.5, 9.0, 13.5]]
    assert memory.get_ylabel().endswith("(KiB)")
    assert "peak" in memory.get_ylabel()
    assert memory.get_ylim()[0] == tokens.get_ylim()[0] == 0
    assert [line.get_label() for line in loss.lines] == ["r=1, seed 1", "r=2, seed 1"]
    assert all(str(line.get_label()).startswith("_") for line in [*tokens.lines, *memory.lines])
    assert loss.get_shared_x_axes().joined(loss, memory)
    assert memory.get_xlabel() == "optimizer step"
    assert "A line for each of 2 runs." in drawing.caption
    assert "Up to 3 runs shared a pass" in drawing.caption
    assert drawing.figure is not None
    assert len(drawing.figure.legends) == 1


def test_a_run_without_a_peak_shows_what_was_allocated_and_alone_needs_no_legend() -> None:
    (row,) = runs = rows(Run(rank=2, loss=1.0))
    drawing = series_over_steps(
        runs, {row["run_id"]: series(1.0, sharing=1.0, peak=False)}, objective=LOSS
    )
    assert heights(panels(drawing)[2]) == [[2.5, 5.0, 7.5]]
    assert "Each had its passes to itself." in drawing.caption
    assert drawing.figure is not None
    assert not drawing.figure.legends
    assert series_over_steps(runs, {}, objective=LOSS).reason == (
        "none of the best runs has a series of its throughput"
    )


# Contrasts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [None, 0.02])
def test_a_contrast_is_its_difference_with_its_interval(tmp_path: Path, margin) -> None:
    losses = {2: around(1.0), 4: around(0.5, shift=1), 8: around(1.0, shift=2)}
    saved(tmp_path, losses, compare={"lora.rank": 2}, **({"margin": margin} if margin else {}))
    found = answered(load_sweep(tmp_path, "small"))
    assert found is not None
    drawing = contrast_intervals(found)
    (axes,) = panels(drawing)
    assert labels(axes) == ["8 - 2", "4 - 2"], "from below: the first is on top"
    zero, *lines = axes.lines
    assert np.asarray(zero.get_xdata()).tolist() == [0, 0]
    points = [line for line in lines if len(np.atleast_1d(line.get_xdata())) == 1]
    spans = [np.asarray(line.get_xdata()).tolist() for line in lines if line not in points]
    drawn = [float(np.atleast_1d(point.get_xdata())[0]) for point in points]
    pairs = [np.mean(losses[rank]) - np.mean(losses[2]) for rank in (8, 4)]
    assert drawn == pytest.approx(pairs)
    for span, each in zip(spans, reversed(found.all), strict=True):
        assert each.tested is not None
        assert span == [each.tested.low, each.tested.high]
    eight, four = points
    assert to_hex(four.get_markerfacecolor()) == to_hex(COLOURS[0]), "decided: filled"  # pyright: ignore
    if margin is None:
        assert to_hex(eight.get_markerfacecolor()) == "#ffffff", "not decided: empty"  # pyright: ignore
        assert not axes.patches
        assert "Grey" not in drawing.caption
    else:
        assert to_hex(eight.get_color()) == to_hex(COLOURS[2]), "equivalent"  # pyright: ignore
        (band,) = axes.patches
        assert (band.get_x(), band.get_width()) == pytest.approx((-0.02, 0.04))  # pyright: ignore
        assert "Grey: the margin, ±0.02." in drawing.caption
    assert "better is left" in drawing.caption
    assert len(drawing.run_ids) == 16
    assert axes.get_xlabel().startswith("Δ eval loss")


def test_contrasts_of_bytes_are_drawn_in_their_unit_with_the_margin(tmp_path: Path) -> None:
    mib = 2.0**20
    losses = {rank: [mib * loss for loss in around(rank, shift=rank)] for rank in (2, 3)}
    saved(tmp_path, losses, compare={"lora.rank": 2}, margin=2.5 * mib)
    found = answered(load_sweep(tmp_path, "small"))
    assert found is not None
    drawing = contrast_intervals(replace(found, metric="memory/peak_bytes"))
    (axes,) = panels(drawing)
    assert axes.get_xlabel() == "Δ peak memory (MiB)"
    (one,) = found.all
    assert one.tested is not None
    assert one.tested.low is not None
    assert one.tested.high is not None
    _, span, point = (np.asarray(line.get_xdata(), float).ravel().tolist() for line in axes.lines)
    assert span == pytest.approx([one.tested.low / mib, one.tested.high / mib])
    assert point == pytest.approx([one.tested.difference / mib])
    assert point[0] == pytest.approx(1.0, abs=0.01)
    (band,) = axes.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-2.5, 5.0))  # pyright: ignore


def test_contrasts_of_which_none_was_tested_are_not_drawn(tmp_path: Path) -> None:
    saved(tmp_path, {2: around(1.0)}, compare={"lora.rank": 2})
    file = tmp_path / "sweeps" / "small" / "sweep.yaml"
    file.write_text(file.read_text().replace("choice(2)", "choice(2, 8)"))
    found = answered(load_sweep(tmp_path, "small"))
    assert found is not None
    assert contrast_intervals(found).reason == "no contrast has two confirmed sides"


# Dependence ---------------------------------------------------------------------------------------


def trials(metric_size: float) -> list[TrialPoint]:
    points = [
        {"optim.lr": repr(10.0**-e), "lora.alpha": str(a), "quant": q}
        for e in (1, 2, 3)
        for a in (8, 10, 12)
        for q in ("nf4", "int4_asym_long")
    ]
    values = [
        metric_size * (1 + abs(math.log10(float(p["optim.lr"])) + 2) + (p["quant"] == "nf4"))
        for p in points
    ]
    again = [TrialPoint(point=p, value=v) for p, v in zip(points, values, strict=True)]
    return [*again, *again, TrialPoint(point=points[0], value=None)]


@pytest.mark.parametrize(
    ("metric", "size", "drawn_as"), [(LOSS, 1.0, 1.0), ("memory/peak_bytes", 2.0**20, 2.0**20)]
)
def test_each_axis_is_a_panel_of_its_dependence_with_intervals(metric, size, drawn_as) -> None:
    given = trials(size)
    finished = [trial for trial in given if trial.value is not None]
    expected = {
        each.axis: each
        for each in partial_dependence(
            [t.point for t in finished], [t.value or 0 for t in finished]
        )
    }
    drawing = dependence_panels(given, metric=metric)
    shown = {axes.get_xlabel(): axes for axes in panels(drawing) if axes.get_visible()}
    assert shown.keys() == expected.keys() == {"optim.lr", "lora.alpha", "quant"}
    for axis in ("optim.lr", "lora.alpha"):
        (line,), (band,) = shown[axis].lines, shown[axis].collections
        np.testing.assert_allclose(line.get_ydata(), np.array(expected[axis].mean) / drawn_as)  # pyright: ignore
        ys = np.asarray(band.get_paths()[0].vertices)[:, 1]
        assert min(ys) == pytest.approx(min(expected[axis].low) / drawn_as)
        assert max(ys) == pytest.approx(max(expected[axis].high) / drawn_as)
    assert shown["optim.lr"].get_xscale() == "log"
    np.testing.assert_allclose(sorted(shown["optim.lr"].get_xticks()), [0.001, 0.01, 0.1])
    assert shown["lora.alpha"].get_xscale() == "linear"
    quant, of_quant = shown["quant"], expected["quant"]
    assert [label.get_text() for label in quant.get_xticklabels()] == ["nf4", "int4_asym_long"]
    (container,) = quant.containers
    points, _, (bars,) = container.lines  # pyright: ignore
    np.testing.assert_allclose(
        np.asarray(points.get_ydata(), float), np.array(of_quant.mean) / drawn_as
    )
    ends = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(
        ends, np.array([of_quant.low, of_quant.high]).T / drawn_as, rtol=1e-9
    )
    assert "over 36 completed trials" in drawing.caption
    assert drawing.is_wide


@pytest.mark.parametrize(
    ("width", "grid"), [(Width.one_column, (2, 2)), (Width.two_columns, (1, 3))]
)
def test_panels_lie_two_or_three_beside_each_other(width: Width, grid: tuple[int, int]) -> None:
    drawing = dependence_panels(trials(1.0), metric=LOSS, width=width)
    first, *others = panels(drawing)
    assert all(first.get_shared_y_axes().joined(first, each) for each in others), "one scale"
    spec = first.get_subplotspec()
    assert spec is not None
    assert spec.get_gridspec().get_geometry() == grid
    assert [axes.get_visible() for axes in panels(drawing)] == [True] * 3 + [False] * (
        grid[0] * grid[1] - 3
    )


def test_too_few_trials_are_no_dependence() -> None:
    drawing = dependence_panels(trials(1.0)[:6], metric=LOSS)
    assert drawing.figure is None
    assert "6 completed trials over" in (drawing.reason or "")


@pytest.mark.parametrize(("names", "slant"), [(("nf4", "int4"), 0), (("nf4", "x" * 12), 35)])
def test_long_names_of_choices_are_slanted_and_cut(names: tuple[str, str], slant: int) -> None:
    given = [
        TrialPoint(point={"quant": name, "optim.lr": repr(rate)}, value=1.0 + place + rate)
        for place, name in enumerate(names)
        for rate in (0.1, 0.2, 0.3)
    ] * 4
    drawing = dependence_panels(given, metric=LOSS)
    (quant,) = [axes for axes in panels(drawing) if axes.get_xlabel() == "quant"]
    assert [label.get_text() for label in quant.get_xticklabels()] == list(names)
    assert {label.get_rotation() for label in quant.get_xticklabels()} == {slant}
    long = [TrialPoint(point={"quant": "y" * 15, **t.point}, value=t.value) for t in given]
    cut = [
        TrialPoint(point=dict(t.point) | {"quant": t.point["quant"] + "z" * 15}, value=t.value)
        for t in long
    ]
    (quant,) = [a for a in panels(dependence_panels(cut, metric=LOSS)) if a.get_xlabel() == "quant"]
    assert all(len(label.get_text()) == 14 for label in quant.get_xticklabels())


def test_an_axis_of_ratios_has_its_ends_and_their_middle_as_ticks() -> None:
    given = [
        TrialPoint(point={"lora.rank": str(rank), "x": str(x)}, value=float(rank + x))
        for rank in (2, 8, 32)
        for x in (1, 2, 3)
    ] * 3
    by_name = {axes.get_xlabel(): axes for axes in panels(dependence_panels(given, metric=LOSS))}
    assert by_name["lora.rank"].get_xscale() == "log"
    assert by_name["lora.rank"].get_xticks().tolist() == [2.0, 8.0, 32.0]
    assert by_name["x"].get_xscale() == "linear"
    shown = by_name["lora.rank"].xaxis.get_major_formatter()
    assert shown(0.0123456, 0) == "0.012"


def test_a_run_s_throughput_is_asked_of_runs_that_have_it() -> None:
    runs = rows(Run(rank=2, loss=1.0), Run(rank=8, loss=2.0))
    steps = np.array([1.0, 2.0])
    without = History(curves={"train/loss": (steps, steps)}, num_damaged_lines=0)
    with_all = series(1.0, sharing=2.0)
    drawing = series_over_steps(
        runs, {runs[0]["run_id"]: without, runs[1]["run_id"]: with_all}, objective=LOSS
    )
    assert drawing.run_ids == (runs[1]["run_id"],)
    assert "Up to 2 runs shared a pass" in drawing.caption
