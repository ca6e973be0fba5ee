"""The law of a sweep's learning rates: how the best rate moves with the rank, and what the next rank's
would be.

Best rates are of the search's own trials, one for each rank and seed, between the tried rates by a
parabola; a
line of its own for each combination of the other axes. A best rate at an edge of what was tried is counted,
since the true one may lie beyond.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.cells import MISSING, Cell, Column, ColumnKind, Table
from analysis.figures.cells import counts, value_of
from analysis.frame import Role, Row
from analysis.sources import SweepData
from harness.question.compare import spelled_combination
from harness.question.rate_law import (
    FIRST_RANKS,
    NEAR,
    RANK,
    RATE,
    BestRate,
    RateLaw,
    best_rate,
    fit_law,
    transferred,
)
from harness.records.metrics import METRICS, Direction

FEWEST_RATES = 3
FEWEST_RANKS = 3
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class LawOfPlace:
    """The law of one combination of the axes beside rank and rate."""

    place: dict[str, str]
    scaling: str
    """How alpha goes with the rank, in words."""
    best: tuple[tuple[int, Any, BestRate], ...]
    """Rank, seed, best rate."""
    law: RateLaw
    next_rank: int
    """Twice the highest rank that was tried."""
    run_ids: tuple[str, ...]

    @property
    def at_edge(self) -> int:
        """How many of the best rates are the smallest or largest that were tried."""
        return sum(each.at_edge for _, _, each in self.best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What `search.transfer=lr` would have tried of a whole grid, and what it would have missed."""

    place: dict[str, str]
    near: int
    """Rates that are tried at each higher rank; the search takes three."""
    trials: int
    of: int
    lost: float
    """Mean over the ranks of the best loss that it sees, minus the best of all rates."""
    most: float
    """The same of the rank where it is largest."""


def laws_of(sweep: SweepData) -> list[LawOfPlace]:
    """Return the laws of a sweep's search; none without several ranks and rates of each."""
    metric, direction = next(iter(sweep.objectives.items()))
    sign = -1.0 if Direction(direction) is Direction.maximize else 1.0
    laws = []
    for place, rows in _by_place(sweep, metric).items():
        costs: dict[tuple[int, Any], dict[float, float]] = {}
        for row in rows:
            value = value_of(row, metric)
            assert value is not None, "counted"
            key = int(row["lora.rank"]), row["seed"]
            costs.setdefault(key, {})[float(row["optim.lr"])] = sign * value
        best = [
            (rank, seed, best_rate(each))
            for (rank, seed), each in sorted(costs.items())
            if len(each) >= FEWEST_RATES
        ]
        law = fit_law([(rank, each.rate) for rank, _, each in best])
        ranks = sorted({rank for rank, _, _ in best})
        if law is None or len(ranks) < FEWEST_RANKS:
            continue
        laws.append(
            LawOfPlace(
                place=dict(place),
                scaling=_scaling(rows),
                best=tuple(best),
                law=law,
                next_rank=2 * ranks[-1],
                run_ids=tuple(row["run_id"] for row in rows),
            )
        )
    return laws


def savings_of(sweep: SweepData) -> list[Saving]:
    """Return what the transfer of rates would have saved of a whole grid, and lost; none of another
    search.
    """
    metric, direction = next(iter(sweep.objectives.items()))
    sign = -1.0 if Direction(direction) is Direction.maximize else 1.0
    found = []
    for place, rows in _by_place(sweep, metric).items():
        of_point: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            value = value_of(row, metric)
            assert value is not None, "counted"
            of_point.setdefault((row["point"][RANK], row["point"][RATE]), []).append(sign * value)
        cost = {point: sum(values) / len(values) for point, values in of_point.items()}
        ranks = sorted({rank for rank, _ in cost}, key=float)
        rates = sorted({rate for _, rate in cost}, key=float)
        if len(ranks) < FEWEST_RANKS or len(rates) <= NEAR or len(cost) < len(ranks) * len(rates):
            continue
        found += [_saving(dict(place), cost, ranks, rates, near) for near in range(1, NEAR + 1)]
    return found


def _saving(
    place: dict[str, str],
    cost: Mapping[tuple[str, str], float],
    ranks: Sequence[str],
    rates: Sequence[str],
    near: int,
) -> Saving:
    """Go through a whole grid as one with the transfer of rates would."""
    tried = [point for point in cost if point[0] in ranks[:FIRST_RANKS]]
    for rank in ranks[FIRST_RANKS:]:
        stage = [{RANK: rank, RATE: rate} for rate in rates]
        told = [({RANK: r, RATE: lr}, cost[r, lr]) for r, lr in tried]
        tried += [(point[RANK], point[RATE]) for point in transferred(stage, told, near)]
    lost = [
        min(cost[p] for p in tried if p[0] == rank) - min(cost[rank, rate] for rate in rates)
        for rank in ranks[FIRST_RANKS:]
    ]
    return Saving(
        place=place,
        near=near,
        trials=len(tried),
        of=len(cost),
        lost=sum(lost) / len(lost),
        most=max(lost),
    )


def _by_place(sweep: SweepData, metric: str) -> dict[tuple[tuple[str, str], ...], list[Row]]:
    found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in sweep.rows_of(Role.search):
        point: Mapping[str, str] = row["point"]
        if RANK in point and RATE in point and counts(row, metric):
            if value_of(row, metric) is None:
                continue
            place = tuple((k, v) for k, v in point.items() if k not in (RANK, RATE))
            found.setdefault(place, []).append(row)
    return found


def _scaling(rows: Sequence[Row]) -> str:
    """Say how alpha goes with the rank; rsLoRA's alpha over the root of the rank is alpha times that root."""
    if rows[0].get("lora.alpha_over_rank") is not None:
        return "alpha ∝ r√r" if rows[0].get("lora.rslora") else "alpha ∝ r"
    return "alpha ∝ √r" if rows[0].get("lora.rslora") else "alpha fixed"


# Tables -------------------------------------------------------------------------------------------


def law_table(laws: Sequence[LawOfPlace], title: str) -> Table:
    """Return a line for each law: slope with its interval, best rates by rank, and the next rank's rate."""
    key, number = ColumnKind.key, ColumnKind.statistic
    axes = list(dict.fromkeys(name for each in laws for name in each.place))
    ranks = sorted({rank for each in laws for rank, _, _ in each.best})
    columns = [
        *(Column(key=name, label=name, kind=key) for name in axes),
        Column(key="scaling", label="scale", kind=key),
        Column(key="n", label="n", kind=ColumnKind.count),
        *(
            Column(key=f"rank {rank}", label=f"best rate, r = {rank}", kind=number)
            for rank in ranks
        ),
        Column(key="slope", label="slope", kind=number),
        Column(key="slope interval", label="interval", kind=number),
        Column(key="next", label="next rank's rate", kind=number),
        Column(key="next interval", label="where it would lie", kind=number),
    ]
    edge = sum(each.at_edge for each in laws)
    notes = [
        "log(best rate) = intercept + slope · log(rank), least squares over ranks and seeds; t-intervals, "
        f"{CONFIDENCE:.0%}. A slope of 0: the rate stays; of −1: it halves where the rank doubles. Best "
        f"rates "
        "of the search's own trials, between the tried ones by a parabola; of a rank the geometric mean "
        "over seeds.",
        f"{edge} of {sum(len(each.best) for each in laws)} best rates lie at an edge of what was tried, "
        f"where the "
        "true one may be beyond.",
    ]
    return Table(
        name="rate_law",
        title=title,
        columns=columns,
        rows=[_law_line(each, axes, ranks) for each in laws],
        footnotes=notes,
    )


def _law_line(each: LawOfPlace, axes: Sequence[str], ranks: Sequence[int]) -> list[Cell]:
    law, ids = each.law, each.run_ids
    slope, ahead = (
        law.slope_interval(CONFIDENCE),
        law.prediction_interval(each.next_rank, CONFIDENCE),
    )
    cells = [Cell(text=each.place.get(name, MISSING)) for name in axes]
    cells += [Cell(text=each.scaling), Cell(text=str(law.n), number=str(law.n), n=law.n)]
    for rank in ranks:
        rates = [best.rate for of_rank, _, best in each.best if of_rank == rank]
        edge = any(best.at_edge for of_rank, _, best in each.best if of_rank == rank)
        text = MISSING if not rates else f"{_geometric_mean(rates):.2g}"
        cells.append(Cell(text=text, note="edge" if edge else None, n=len(rates), run_ids=ids))
    cells.append(_number(law.slope, "+.2f", law.n, ids))
    cells.append(Cell(text=_ends(slope, "+.2f"), n=law.n, run_ids=ids))
    rate = f"{law.predicted(each.next_rank):.2g} (r = {each.next_rank})"
    cells.append(Cell(text=rate, n=law.n, run_ids=ids))
    return [*cells, Cell(text=_ends(ahead, ".2g"), n=law.n, run_ids=ids)]


def saving_table(savings: Sequence[Saving], metric: str, title: str) -> Table:
    """Return a line for each law: trials that `search.transfer=lr` tries of the grid, and what it loses."""
    key, number = ColumnKind.key, ColumnKind.statistic
    axes = list(dict.fromkeys(name for each in savings for name in each.place))
    unit = METRICS[metric].unit
    columns = [
        *(Column(key=name, label=name, kind=key) for name in axes),
        Column(key="near", label="rates a rank", kind=key),
        Column(key="trials", label="trials", kind=number),
        Column(key="of", label="of the grid's", kind=number),
        Column(key="saved", label="saved", kind=number),
        Column(key="lost", label=f"{METRICS[metric].label} lost, mean", unit=unit, kind=number),
        Column(key="most", label="at most", unit=unit, kind=number),
    ]
    digits = METRICS[metric].digits
    lines = [
        [
            *(Cell(text=each.place.get(name, MISSING)) for name in axes),
            Cell(text=str(each.near)),
            Cell(text=str(each.trials)),
            Cell(text=str(each.of)),
            Cell(text=f"{1 - each.trials / each.of:.0%}"),
            Cell(text=f"{each.lost:.{digits}f}"),
            Cell(text=f"{each.most:.{digits}f}"),
        ]
        for each in savings
    ]
    note = (
        "A grid that goes from rank to rank on these trials: every rate at the two lowest ranks, at each "
        f"higher one so many of the nearest to the predicted rate (search.transfer=lr: {NEAR}). Lost: the "
        "best loss among those minus the best of all rates, over the higher ranks."
    )
    return Table(name="rate_transfer", title=title, columns=columns, rows=lines, footnotes=[note])


def law_sentences(laws: Sequence[LawOfPlace]) -> list[str]:
    """Say what each law is, whether the rate is shown to move, and how much of it the grid's edges decide."""
    sentences = []
    for each in laws:
        edge, tried = each.at_edge, len(each.best)
        ends = each.law.slope_interval(CONFIDENCE)
        where = f" ({spelled_combination(each.place)})" if each.place else ""
        if edge == tried:
            sentences.append(
                f"{each.scaling}{where}: no law, since every best rate lies at an edge of what was tried."
            )
            continue
        at_edge = (
            f" ({edge} of {tried} best rates lie at an edge of what was tried)" if edge else ""
        )
        moves = "is not shown to move"
        if ends is not None and not ends[0] <= 0 <= ends[1]:
            moves = "falls" if each.law.slope < 0 else "rises"
        interval = "" if ends is None else f" {_ends(ends, '+.2f')}"
        ranks = sorted({rank for rank, _, _ in each.best})
        span = ranks[-1] / ranks[0]
        factors = "" if ends is None else f" {_ends((span ** ends[0], span ** ends[1]), '.2g')}"
        sentences.append(
            f"{each.scaling}{where}: the best rate {moves} with the rank, slope {each.law.slope:+.2f}"
            f"{interval}, {span**each.law.slope:.2g} times{factors} from rank {ranks[0]} to {ranks[-1]}; "
            f"rank {each.next_rank} would want {each.law.predicted(each.next_rank):.2g}{at_edge}."
        )
    return sentences


def _geometric_mean(values: Sequence[float]) -> float:
    from statistics import geometric_mean

    return geometric_mean(values)


def _number(value: float, form: str, n: int, ids: tuple[str, ...]) -> Cell:
    text = format(value, form)
    return Cell(text=text.replace("-", "\u2212"), number=text, value=value, n=n, run_ids=ids)


def _ends(ends: tuple[float, float] | None, form: str) -> str:
    if ends is None:
        return MISSING
    return f"[{format(ends[0], form)}, {format(ends[1], form)}]".replace("-", "\u2212")
