"""The table over all parts of the comparison, with the line that each has to reach. Pure functions."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bench.peers.arms import OURS, TRAINER, TRL
from bench.peers.ratios import Agreement

Part = Mapping[str, Any]
_NAMES = {TRAINER: "Trainer", TRL: "TRL"}
_RUNS = ("run", "run_model")


class Verdict(Enum):
    """How a measure stands to its line."""

    met = "met"
    missed = "NOT met"
    void = "void: not the same work"
    shown = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The line that a measure has to reach, and what is aimed at."""

    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` is on the right side."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def text(self, unit: str) -> str:
        """Return it in words."""
        if self.at_least == math.inf:
            return "the same best"
        sign, limit = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        aim = "" if self.aim is None else f" (aim {self.aim:g}{unit})"
        return f"{sign} {limit:g}{unit}{aim}"


NEVER = Bound(at_least=math.inf)
"""Where a search has not found what the grid finds, no ratio is enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table."""

    measure: str
    ours: str
    theirs: str
    value: str
    bound: str
    verdict: Verdict


def lines_of(parts: Mapping[str, Part]) -> list[Line]:
    """Return the rows of the parts that there are."""
    lines: list[Line] = []
    for name in _RUNS:
        if name in parts:
            lines += _run_lines(parts[name]["model"], parts[name])
    for name, make in _LINES.items():
        if name in parts:
            lines += make(parts[name])
    return lines


def markdown(lines: list[Line], results: Mapping[str, Any]) -> str:
    """Return the table and what it was measured with."""
    heads = ("measure", "harness", "instead", "ratio (least–greatest)", "must reach", "")
    rows = [
        (each.measure, each.ours, each.theirs, each.value, each.bound, each.verdict.value)
        for each in lines
    ]
    table = [heads, ("---", *["---:"] * 4, "---"), *rows]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"{text}\n\n{_circumstances(results)}"


def _circumstances(results: Mapping[str, Any]) -> str:
    """Say with which versions, on what, and when."""
    peers = results.get("peers", {})
    lines = ["Peers: " + ", ".join(f"{name} {version}" for name, version in peers.items()) + "."]
    for name, part in results["parts"].items():
        machine = part["machine"]
        lines.append(
            f"{name}: {part['measured_at']}, {machine['cpu']}, {machine['cpu_threads']} logical cores, "
            f"{part['threads']} threads an arm, load {part['load_average_before']:.1f} before, "
            f"took {part['took_seconds']:.0f} s"
        )
    return "\n".join(lines)


# One run -----------------------------------------------------------------------------------------


def _run_lines(what: str, part: Part) -> Iterator[Line]:
    ours = part["arms"][OURS]
    for peer, ratios in part["over_peers"].items():
        theirs, name = part["arms"][peer], _NAMES[peer]
        is_same = _is_same(theirs["agreement"])

        def line(measure: str, key: str, digits: str, bound: Bound | None, same: bool) -> Line:
            return _line(
                measure=f"{measure}, {what}, / {name}",  # noqa: B023  called at once
                ours=digits.format(_scaled(key, ours[_ARM_KEYS[key]])),
                theirs=digits.format(_scaled(key, theirs[_ARM_KEYS[key]])),  # noqa: B023
                ratio=ratios[key],  # noqa: B023
                bound=bound,
                is_same=same,
            )

        speed, memory = Bound(at_least=1.15), Bound(at_most=1.0) if peer == TRL else None
        yield line("tokens/s of one run", "tokens_per_second", "{:,.0f}", speed, is_same)
        yield line("command to first step", "first_step", "{:.1f} s", None, is_same)
        yield line("peak memory of one run", "peak_bytes", "{:.0f} MiB", memory, is_same)


_ARM_KEYS = {
    "tokens_per_second": "tokens_per_second",
    "first_step": "first_step_seconds",
    "peak_bytes": "peak_bytes",
}


def _scaled(key: str, value: float) -> float:
    return value / 2**20 if key == "peak_bytes" else value


def _is_same(agreements: list[dict[str, float]]) -> bool:
    return all(Agreement(**each).is_same for each in agreements)


def _line(
    *,
    measure: str,
    ours: str,
    theirs: str,
    ratio: Mapping[str, float],
    bound: Bound | None,
    is_same: bool,
) -> Line:
    """Judge one ratio by its median."""
    spread = f"{ratio['low']:.2f}–{ratio['high']:.2f}"
    return Line(
        measure=measure,
        ours=ours,
        theirs=theirs,
        value=f"{ratio['median']:.2f} ({spread})" if is_same else "—",
        bound="" if bound is None else bound.text(" ×"),
        verdict=_verdict(ratio["median"], bound, is_same),
    )


def _verdict(value: float, bound: Bound | None, is_same: bool) -> Verdict:
    if not is_same:
        return Verdict.void
    if bound is None:
        return Verdict.shown
    return Verdict.met if bound.holds(value) else Verdict.missed


# Sweeps ------------------------------------------------------------------------------------------


def _sweep_lines(part: Part) -> Iterator[Line]:
    for peer, loop in part["loops"].items():
        bound = Bound(at_least=4, aim=8) if peer == TRL else None
        yield _loop_line(f"16-run sweep / 16 {_NAMES[peer]} processes", part, loop, bound)
    many = part["multirun"]
    yield Line(
        measure="16-run sweep / Hydra's multirun of TRL",
        ours=_seconds(part["sweep_seconds"]),
        theirs=f"{many['seconds']:.0f} s ({many['jobs_run']} jobs run)",
        value=f"{many['over_sweep']:.2f}",
        bound="",
        verdict=Verdict.shown,
    )
    peaks = [peak for loop in part["loops"][TRL]["process_peak_bytes"] for peak in loop]
    yield Line(
        measure="peak memory of the sweep / one TRL process",
        ours=f"{_middle(part['sweep_peak_bytes']) / 2**20:.0f} MiB",
        theirs=f"{_middle(peaks) / 2**20:.0f} MiB",
        value=f"{_middle(part['sweep_peak_bytes']) / _middle(peaks):.2f}",
        bound="",
        verdict=Verdict.shown,
    )


def _search_lines(part: Part) -> Iterator[Line]:
    found = f"{sum(part['same_best'])} of {len(part['same_best'])} searches as good"
    yield _loop_line(
        f"search to the best of {part['cells']} cells ({found}) / TRL processes over the grid",
        part,
        part["loops"][TRL],
        Bound(at_least=12, aim=20) if all(part["same_best"]) else NEVER,
    )


def _loop_line(measure: str, part: Part, loop: Part, bound: Bound | None) -> Line:
    return _line(
        measure=measure,
        ours=_seconds(part["sweep_seconds"]),
        theirs=f"{_seconds(loop['seconds'])} ({loop['processes_run']} of {loop['length']} run)",
        ratio=loop["over_sweep"],
        bound=bound,
        is_same=_is_same(loop["agreement"]),
    )


def _seconds(values: list[float]) -> str:
    return f"{_middle(values):.0f} s"


def _middle(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


# What has no peer --------------------------------------------------------------------------------


def _tracking_lines(part: Part) -> Iterator[Line]:
    share = part["share"]["jsonl_and_wandb_offline"]
    bound = Bound(at_most=2.0)
    for key, what in (("calls", "time in calls"), ("processor", "processor time")):
        percent = 100 * share[key]
        yield Line(
            measure=f"tracking (JSONL + W&B offline), {what} of a 50 ms step",
            ours=f"{percent:.2f} %",
            theirs="—",
            value="—",
            bound=bound.text(" %"),
            verdict=_verdict(percent, bound, True),
        )


def _report_lines(part: Part) -> Iterator[Line]:
    stage = part["stages"]["the whole report"]
    bound = Bound(at_most=10)
    yield Line(
        measure=f"report over {part['runs']:,} records",
        ours=f"{stage['seconds']:.1f} s, {stage['peak_bytes'] / 2**20:.0f} MiB",
        theirs="—",
        value="—",
        bound=bound.text(" s"),
        verdict=_verdict(stage["seconds"], bound, True),
    )


_LINES = {
    "sweep": _sweep_lines,
    "search": _search_lines,
    "tracking": _tracking_lines,
    "report": _report_lines,
}
