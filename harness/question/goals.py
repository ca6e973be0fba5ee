"""What a question wants of its runs: objectives and constraints, as a sweep's file gives them. No torch."""

import re
from collections.abc import Mapping
from typing import Any

from harness.errors import RequestError, near_names
from harness.question.reading import Section, finite_number
from harness.question.settings import Constraint, Objective
from harness.records.metrics import METRICS, Direction

DEFAULT_OBJECTIVE = "eval/loss"
NOT_IN_RECORD = ("train/grad_norm", "train/learning_rate", "train/loss_scale", "train/epoch")
"""Metrics of single steps, of which a run's record has no last value."""

BYTE_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def read_objectives(given: Any, where: str) -> tuple[Objective, ...]:
    """Read `objective`: `{eval/loss: minimize}`, a metric's name alone, or several of either."""
    if given is None:
        given = DEFAULT_OBJECTIVE
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and all(isinstance(metric, str) for metric in given):
        if len(set(given)) < len(given):
            raise RequestError(f"{where}objective={given} names a metric twice")
        given = dict.fromkeys(given)
    if not isinstance(given, Mapping) or not given:
        raise RequestError(
            f"{where}objective must be a mapping such as {{eval/loss: minimize}}, got {given!r}"
        )
    return tuple(_objective(metric, wanted, where) for metric, wanted in given.items())


def _objective(metric: str, wanted: Any, where: str) -> Objective:
    _check_metric("objective", metric, where)
    own = METRICS[metric].direction
    choices = [direction.value for direction in (Direction.minimize, Direction.maximize)]
    if wanted is None and own is Direction.neither:
        raise RequestError(
            f"{where}objective: {metric} is neither better small nor large; write "
            f"{{{metric}: minimize}} or {{{metric}: maximize}}"
        )
    if wanted is not None and wanted not in choices:
        raise RequestError(
            f"{where}objective: {metric}: {wanted} must be {' or '.join(choices)}"
            f"{near_names(str(wanted), choices)}"
        )
    direction = own if wanted is None else Direction(wanted)
    if own not in (direction, Direction.neither):
        raise RequestError(
            f"{where}objective: {metric}: {direction.value} would look for the worst; write {own.value}"
        )
    return Objective(metric=metric, direction=direction)


def _check_metric(name: str, metric: Any, where: str) -> None:
    if metric not in METRICS:
        raise RequestError(
            f"{where}{name}: unknown metric {metric!r}{near_names(str(metric), METRICS)}; names are "
            "group/name_unit, such as eval/loss and memory/peak_bytes"
        )
    if metric in NOT_IN_RECORD:
        raise RequestError(
            f"{where}{name}: {metric} belongs to single steps, a run's record has no last value of it"
        )


def read_constraints(given: Any, where: str) -> tuple[Constraint, ...]:
    """Read `constraints`: `{memory/peak_bytes: {at_most: 24GiB}}`."""
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise RequestError(
            f"{where}constraints must be a mapping such as "
            f"{{memory/peak_bytes: {{at_most: 24GiB}}}}, got {given!r}"
        )
    return tuple(_constraint(metric, limits, where) for metric, limits in given.items())


def _constraint(metric: str, given: Any, where: str) -> Constraint:
    _check_metric("constraints", metric, where)
    section = Section(f"constraints.{metric}", given, ("at_most", "at_least"), where)
    limits = {key: _amount(section, metric, key) for key in ("at_most", "at_least")}
    most, least = limits["at_most"], limits["at_least"]
    if most is None and least is None:
        raise RequestError(f"{where}constraints.{metric} needs at_most or at_least")
    if most is not None and least is not None and least > most:
        raise RequestError(
            f"{where}constraints.{metric}: nothing is at most {most:g} and at least {least:g}"
        )
    return Constraint(metric=metric, at_most=most, at_least=least)


def _amount(section: Section, metric: str, key: str) -> float | None:
    """Return a number, or a number of bytes with its unit."""
    value = section.given.get(key)
    if value is None:
        return None
    in_bytes = METRICS[metric].unit == "bytes"
    match = re.fullmatch(r"\s*([-+.\deE]*\d\.?)\s*([A-Za-z]*)\s*", str(value))
    number = None if match is None or isinstance(value, bool) else finite_number(match[1])
    unit = match[2] if match is not None else ""
    if number is None or (unit and not (in_bytes and unit in BYTE_UNITS)):
        units = f", or one with {', '.join(BYTE_UNITS)}" if in_bytes else ""
        raise section.refuse(key, f"must be a finite number{units}")
    return number * BYTE_UNITS.get(unit, 1)
