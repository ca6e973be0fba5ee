"""Rows into the groups that a table averages, and the refusal to average unlike runs."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.cells import TableRefused
from analysis.frame import (
    BEFORE,
    Role,
    Row,
    config_keys,
    cost_key,
    is_config_key,
    is_probe,
    is_without_effect,
    metric_key,
    value_of,
)
from analysis.printing import is_exact
from analysis.spec import Spec
from harness.errors import near_names
from harness.plan.probe import costs_nothing
from harness.records.metrics import COHORT_SHARES, METRICS, Direction
from harness.records.record import MeasuredIn, RunStatus

PHASES = ("before", "after")
_SEED = "seed"
_CONTENTS = ("provenance.model_fingerprint", "provenance.data_fingerprint")


@dataclass(slots=True, kw_only=True)
class Group:
    """The runs of one line (or of one line and one value of the key that goes across)."""

    values: tuple[Any, ...]
    """Values of the keys: the spec's rows, then `choose` or `across`."""
    rows: list[Row]
    """All but probes."""
    probes: list[Row] = field(default_factory=list)
    """Probes of configurations that cost the same."""

    @property
    def completed(self) -> list[Row]:
        """The runs whose results are averaged."""
        return [row for row in self.rows if row["status"] is RunStatus.completed]


def metric_name(column: str) -> str:
    """Return the metric of a column: `eval/loss` of `before.eval/loss`."""
    phase, dot, name = column.partition(".")
    return name if dot and phase in PHASES else column


def grouped(spec: Spec, rows: Sequence[Row]) -> list[Group]:
    """Return the groups of a spec, ordered by their values.

    Raises TableRefused for nothing to show, unlike runs in a group, or a seed that comes twice.
    """
    _check_columns(spec)
    chosen = [row for row in rows if not is_probe(row) and _is_let_in(spec, row)]
    if not chosen:
        role = f" of the role {spec.role.value}" if spec.role else ""
        raise TableRefused(
            f"table {spec.name}: none of {len(rows)} runs{role} is let in"
            + (f" by where={dict(spec.where)}" if spec.where else "")
        )
    across = () if spec.across is None else (spec.across,)
    keys = (*spec.rows, *spec.choose, *across)
    _check_keys(spec, keys, chosen)
    costs_only = all(is_cost(metric_name(column)) for column in spec.columns)
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in chosen:
        found.setdefault(tuple(value_of(row, key) for key in keys), []).append(row)
    for values, group in found.items():
        check_alike(group, dict(zip(keys, values, strict=True)), costs_only=costs_only)
    ordered = sorted(found, key=sort_key)
    groups = [Group(values=values, rows=found[values]) for values in ordered]
    if any(metric_name(name) in COHORT_SHARES for name in spec.columns):
        _add_probes(groups, [row for row in rows if is_probe(row)])
    return groups


def check_alike(group: Sequence[Row], named: Row, *, costs_only: bool = False) -> None:
    """Raise TableRefused if runs that would be averaged differ in more than their seed.

    With `costs_only` they may also differ in what does not change the cost of a step, and need not be
    replicates: a learning rate costs nothing.
    """
    roles = {row.get("role") for row in group}
    if Role.confirmation.value in roles and len(roles) > 1:
        raise TableRefused(
            f"the runs of {_spelled(named)} are of the roles {', '.join(sorted(map(str, roles)))}: "
            "confirmation and search do not mix; give the table a role"
        )
    if costs_only:
        _check_keys_alike(group, named, costs_nothing)
        return
    cells = {row.get("provenance.cell_id") for row in group}
    if None in cells or len(cells) > 1:
        _check_keys_alike(group, named, is_without_effect)
    if len(cells - {None}) > 1:
        raise TableRefused(
            f"the runs of {_spelled(named)} have the same configuration and different identities "
            f"({', '.join(sorted(map(str, cells - {None})))}): the harness or a file of theirs has changed"
        )
    seeds = Counter(row.get(_SEED) for row in group if row["status"] is RunStatus.completed)
    for seed, count in seeds.items():
        if count > 1:
            raise TableRefused(
                f"{count} runs of {_spelled(named)} have seed {seed}: they are no replicates"
            )


def _check_keys_alike(group: Sequence[Row], named: Row, is_ignored: Callable[[str], bool]) -> None:
    first = group[0]
    keys = sorted(set[str]().union(*map(config_keys, group)))
    keys = [key for key in keys if key != _SEED and not is_ignored(key)]
    for key in (*keys, *_CONTENTS):
        absent = None if key in _CONTENTS else "absent"  # W&B's files say nothing of contents
        absent = BEFORE.get(key, absent)  # of a run from before the key
        different = [row for row in group if row.get(key, absent) != first.get(key, absent)]
        if different and (key not in _CONTENTS or all(key in row for row in group)):
            values = {repr(row[key]) if key in row else "absent" for row in group}
            raise TableRefused(
                f"{key} varies ({', '.join(sorted(values))}) among the {len(group)} runs of "
                f"{_spelled(named)}: they cannot be averaged; add {key} to the rows of the table or "
                "choose among the runs"
            )


def chosen_groups(groups: Sequence[Group], spec: Spec) -> tuple[list[Group], list[int]]:
    """Return, for each line, the group whose first column is best, and among how many it was chosen.

    Only groups with the most measured seeds of their line are compared.
    """
    column = spec.columns[0]
    smaller = METRICS[metric_name(column)].direction is not Direction.maximize
    lines: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        lines.setdefault(group.values[: len(spec.rows)], []).append(group)
    chosen, counts = [], []
    for line in lines.values():
        values = [measured(group, column) for group in line]
        most = max(map(len, values))
        means = [
            (sum(found.values()) / len(found), index)
            for index, found in enumerate(values)
            if found and len(found) == most
        ]
        best = (min(means) if smaller else max(means))[1] if means else 0
        chosen.append(line[best])
        counts.append(len(line))
    return chosen, counts


def measured(group: Group, column: str) -> dict[Any, float]:
    """Return the values of a column by seed, from the runs that count for it.

    Quality comes from solo and cohort runs; memory and throughput that a cohort shares come from solo runs
    and probes. What a run costs has its run id for a seed: it is nobody's replicate.
    """
    return {seed: row[metric_key(column)] for seed, row in counted(group, column)}


def counted(group: Group, column: str) -> list[tuple[Any, Row]]:
    """Return seed and row of each run whose value of the column counts."""
    key, name = metric_key(column), metric_name(column)
    if not is_cost(name):
        return [(row.get(_SEED), row) for row in group.completed if row.get(key) is not None]
    rows = group.completed
    if name in COHORT_SHARES:
        solo = [row for row in rows if row["measured_in"] is MeasuredIn.solo]
        rows = solo + [row for row in group.probes if row["status"] is RunStatus.completed]
    return [(row["run_id"], row) for row in rows if row.get(key) is not None]


def sort_key(values: Iterable[Any]) -> list[tuple[int, float, str]]:
    """Order missing values first, then numbers by size, then the rest by their print."""
    return [
        (0, 0.0, "")
        if value is None
        else (1, float(value), "")
        if isinstance(value, int | float)
        else (2, 0.0, str(value))
        for value in values
    ]


def is_cost(name: str) -> bool:
    """Whether a metric says what a configuration costs, whatever it learnt."""
    return is_exact(name) or name in COHORT_SHARES


def _is_let_in(spec: Spec, row: Row) -> bool:
    if spec.role is not None and row.get("role") != spec.role.value:
        return False
    return all(value_of(row, key) in allowed for key, allowed in spec.where.items())


def _check_columns(spec: Spec) -> None:
    for column in spec.columns:
        if metric_name(column) not in METRICS:
            raise ValueError(
                f"table {spec.name}: column {column} is no metric, nor before. or after. and a metric"
                f"{near_names(column, METRICS)}; metrics are {list(METRICS)}"
            )


def _check_keys(spec: Spec, keys: Sequence[str], rows: Sequence[Row]) -> None:
    """Raise TableRefused for a key that no row has."""
    for key in (*keys, *spec.where):
        if all(value_of(row, key) is None and key not in row for row in rows):
            known = {k for row in rows[:1] for k in (*row, *(row.get("point") or {}))}
            known = {k for k in known if is_config_key(k)}
            raise TableRefused(
                f"table {spec.name}: {key} is no configuration key of these runs"
                f"{near_names(key, known)}; they have {sorted(known)}"
            )


def _add_probes(groups: Sequence[Group], probes: Sequence[Row]) -> None:
    """Give each group the probes whose configuration costs the same as that of its runs."""
    if not probes:
        return
    by_cost: dict[frozenset[Any], list[Row]] = {}
    for probe in probes:
        by_cost.setdefault(cost_key(probe), []).append(probe)
    for group in groups:
        group.probes = by_cost.get(cost_key(group.rows[0]), [])


def _spelled(named: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in named.items()) or "the table"
