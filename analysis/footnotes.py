"""What a reader must know to read a table's numbers right: sentences that state counts, tests and names."""

from collections import Counter
from collections.abc import Sequence

from analysis.cells import TIED, Cell
from analysis.frame import Role, Row
from analysis.groups import Group, is_cost, metric_name
from analysis.metric_cells import COHORT_MARK
from analysis.spec import Spec, Spread
from analysis.statistics import EXACT_SIGN_FLIPS

MAX_NOTES = 8
"""Notes of records that are printed; the others are counted."""

_MIXED = (
    ("provenance.commit", "commits"),
    ("provenance.packages", "sets of packages"),
    ("provenance.host", "machines"),
    ("provenance.cpu", "processors"),
    ("provenance.gpus", "GPUs"),
)


def footnotes(
    spec: Spec, groups: Sequence[Group], cells: Sequence[Sequence[Cell]], chosen: Sequence[int]
) -> list[str]:
    """Return the footnotes of a table; `chosen`: among how many settings each line's was chosen."""
    flat = [cell for row in cells for cell in row]
    rows = [row for group in groups for row in (*group.rows, *group.probes)]
    return [
        *_how_spread(spec, flat),
        *_how_marked(spec, flat),
        *_how_compared(spec, groups, flat),
        *_how_chosen(spec, chosen),
        *_where_from(spec, flat),
        *mixed(rows),
        *_notes(rows),
    ]


def _how_spread(spec: Spec, cells: Sequence[Cell]) -> list[str]:
    single = any(cell.interval is not None and cell.n == 1 and not cell.note for cell in cells)
    alone = ["n=1: one run, so no interval."] if single else []
    if not any(cell.spread for cell in cells):
        return alone
    match spec.spread:
        case Spread.interval:
            what = f"half-widths of {100 * spec.confidence:g} % t-intervals"
        case Spread.deviation:
            what = "sample standard deviations"
    return [f"Cells are means ± {what} over the n seeds.", *alone]


def _how_marked(spec: Spec, cells: Sequence[Cell]) -> list[str]:
    lines = []
    if any(cell.best for cell in cells):
        of = "line" if spec.across else "column"
        lines.append(f"Bold: the best mean of each {of}.")
    if any(cell.tied for cell in cells):
        lines.append(
            f"{TIED} Not told apart from the best: the {100 * spec.confidence:g} % interval of their "
            "difference, paired over shared seeds, contains 0."
        )
    return lines


def _how_compared(spec: Spec, groups: Sequence[Group], cells: Sequence[Cell]) -> list[str]:
    if spec.against is None and not spec.against_best:
        return []
    wanted = dict(spec.against or {})
    lines = [dict(zip(spec.rows, group.values, strict=False)) for group in groups]
    named = ", ".join(f"{key}={value}" for key, value in wanted.items())
    if not any(all(line[key] == value for key, value in wanted.items()) for line in lines):
        return [f"No line has {named}, with which the others were to be compared."]
    reference = (
        f"the line with {named}" if named else "the line with the best mean (of these numbers)"
    )
    line = f"Δ: mean difference to {reference}, paired over shared seeds, with its t-interval."
    pairs = max((cell.n for cell in cells if cell.text.startswith(("+", "-"))), default=0)
    if pairs < 2:
        return [line]
    if pairs > EXACT_SIGN_FLIPS:
        return [f"{line} p: two-sided Wilcoxon signed-rank test, Holm-adjusted."]
    least = 2.0 ** (1 - pairs)
    return [
        f"{line} p: two-sided exact sign-flip test, Holm-adjusted; with {pairs} pairs it is at least "
        f"{least:.3g} before the adjustment."
    ]


def _how_chosen(spec: Spec, chosen: Sequence[int]) -> list[str]:
    if not spec.choose:
        return []
    among = f"{min(chosen)}" if min(chosen) == max(chosen) else f"{min(chosen)} to {max(chosen)}"
    keys = " and ".join(spec.choose)
    return [
        f"{keys}: for each line the setting with the best mean {spec.columns[0]} among {among}, chosen on "
        "the numbers shown."
    ]


def _where_from(spec: Spec, cells: Sequence[Cell]) -> list[str]:
    lines = []
    if spec.role is Role.search and not all(map(is_cost, map(metric_name, spec.columns))):
        lines.append("Trials of the search, by which settings were chosen: not a result.")
    if any(COHORT_MARK in (cell.note or "") for cell in cells):
        lines.append(
            f"{COHORT_MARK} Measured in a cohort, whose runs share one process: not the cost of a run "
            f"alone{'' if spec.show_cohort_costs else ', so left out'}."
        )
    return lines


def mixed(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each part of the provenance in which the runs of a table differ."""
    lines = []
    for key, what in _MIXED:
        count = Counter(row[key] for row in rows if row.get(key) is not None)
        if len(count) > 1:
            listed = "; ".join(f"{_short(key, v)} ({_runs(n)})" for v, n in count.most_common(4))
            more = f"; and {len(count) - 4} more" if len(count) > 4 else ""
            lines.append(f"Runs of {len(count)} {what}: {listed}{more}.")
    dirty = sum(bool(row.get("provenance.dirty")) for row in rows)
    if dirty:
        lines.append(f"{_runs(dirty)} of code with changes that no commit holds.")
    return lines


def _short(key: str, value: str) -> str:
    return value[:9] if key == "provenance.commit" else value or "none"


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = Counter(note for row in rows for note in row["notes"])
    lines = [f"{note} ({_runs(count)})." for note, count in notes.most_common(MAX_NOTES)]
    if len(notes) > MAX_NOTES:
        lines.append(f"{len(notes) - MAX_NOTES} further notes stand in the records.")
    return lines


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
