"""What a reader must know to read a table's numbers right: sentences that state counts, tests and names."""

from collections import Counter
from collections.abc import Sequence

from analysis.cells import TIED, Cell
from analysis.frame import FULL_FINE_TUNING, Role, Row
from analysis.groups import Group, is_cost, metric_name
from analysis.inference import FEWEST_FOR_EXACT, Method, method_for
from analysis.metric_cells import COHORT_MARK
from analysis.spec import Spec
from harness.records.record import RESUMED

MAX_NOTES = 8
"""Notes of records that are printed; the others are counted."""

_MIXED = (
    ("provenance.commit", "commits"),
    ("provenance.packages", "sets of packages"),
    ("provenance.host", "machines"),
    ("provenance.cpu", "processors"),
    ("provenance.gpus", "GPUs"),
    ("provenance.backend", "backends"),
)


def footnotes(
    spec: Spec, groups: Sequence[Group], cells: Sequence[Sequence[Cell]], chosen: Sequence[int]
) -> list[str]:
    """Return the footnotes of a table; `chosen`: among how many settings each line's was chosen."""
    flat = [cell for row in cells for cell in row]
    rows = [row for group in groups for row in (*group.rows, *group.probes)]
    return [
        *_how_spread(flat),
        *_how_marked(spec, flat),
        *_how_compared(spec, groups, flat),
        *_how_chosen(spec, chosen),
        *_where_from(spec, flat),
        *_without_adapter(rows),
        *mixed(rows),
        *_notes(rows),
    ]


def _how_spread(cells: Sequence[Cell]) -> list[str]:
    single = any(cell.interval is not None and cell.n == 1 and not cell.note for cell in cells)
    alone = ["n=1: one run, so no interval."] if single else []
    shares = [cell for cell in cells if cell.spread and cell.spread.startswith("[")]
    if shares:
        alone.append(
            "In brackets: 95 % intervals of a share over seeds and rows (Wilson 1927, with the effective "
            "number of answers of Korn and Graubard 1998)."
        )
    if not any(cell.spread and cell.spread.startswith("±") for cell in cells):
        return alone
    return ["Cells are means ± half-widths of 95 % t-intervals over the n seeds.", *alone]


def _how_marked(spec: Spec, cells: Sequence[Cell]) -> list[str]:
    lines, of = [], "line" if spec.across else "column"
    if any(cell.best for cell in cells):
        lines.append(f"Bold: the best mean of each {of}.")
    if any(cell.tied for cell in cells):
        lines.append(
            f"{TIED} May be the best: not set apart by comparisons with the best (Hsu 1984; where deviations "
            f"differ, paired t at 5 %/(k - 1)), 5 % error for all lines of a {of} together."
        )
    return lines


def _how_compared(spec: Spec, groups: Sequence[Group], cells: Sequence[Cell]) -> list[str]:
    if spec.against_best:
        return [
            "Δ to the best other: constrained 95 % intervals of comparisons with the best (Hsu 1984)."
        ]
    if spec.against is None:
        return []
    wanted = dict(spec.against or {})
    lines = [dict(zip(spec.rows, group.values, strict=False)) for group in groups]
    named = ", ".join(f"{key}={value}" for key, value in wanted.items())
    if not any(all(line[key] == value for key, value in wanted.items()) for line in lines):
        return [f"No line has {named}, with which the others were to be compared."]
    pairs = [cell.n for cell in cells if cell.text.startswith(("+", "-")) and cell.n]
    line = f"Δ: mean difference to the line with {named}, paired over shared seeds."
    if max(pairs, default=0) < 2:
        return [line]
    return [f"{line} {how_tested('the lines of this table', min(pairs), method_for(pairs))}"]


def how_tested(family: str, pairs: int, method: Method) -> str:
    """Say which test stands behind intervals and p-values, over which family, and what it assumes."""
    small = (
        f" With {pairs} pairs it leans on differences being normally distributed."
        if method is Method.paired_t and pairs < FEWEST_FOR_EXACT
        else ""
    )
    return (
        f"Two-sided {method.value} test; p by Holm's procedure (1979) over {family}; intervals at the level "
        f"at which it tested each line, so that one excludes 0 where p < .05.{small}"
    )


def _how_chosen(spec: Spec, chosen: Sequence[int]) -> list[str]:
    if not spec.choose:
        return []
    keys = " and ".join(spec.choose)
    if max(chosen) == 1:
        confirmed = spec.role is Role.confirmation
        return [f"{keys}: each line's best of the search, chosen before these runs."] * confirmed
    among = f"{min(chosen)}" if min(chosen) == max(chosen) else f"{min(chosen)} to {max(chosen)}"
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
            "alone, so left out."
        )
    return lines


def _without_adapter(rows: Sequence[Row]) -> list[str]:
    """Say of full fine-tuning what sets its costs apart from an adapter's."""
    full = sum(row.get("lora.method") == FULL_FINE_TUNING for row in rows)
    if not full:
        return []
    return [
        f"Full fine-tuning ({_runs(full)}): all parameters of an unquantized copy of the model that no other "
        "run shares, trained alone; its memory holds weights, gradients and optimizer states of all of them."
    ]


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
    """Return what the records note; that a run went on from a checkpoint changes no number of it."""
    notes = Counter(note for row in rows for note in row["notes"] if not note.startswith(RESUMED))
    lines = [f"{note} ({_runs(count)})." for note, count in notes.most_common(MAX_NOTES)]
    if len(notes) > MAX_NOTES:
        lines.append(f"{len(notes) - MAX_NOTES} further notes stand in the records.")
    return lines


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
