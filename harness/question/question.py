"""A sweep as it is asked: one checked, typed question. Pure; `harness.question.load` reads it from files."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from harness.question.axes import Axis, CaseAxis
from harness.question.launcher import LauncherSettings
from harness.question.points import Space
from harness.question.settings import (
    Confirmation,
    Constraint,
    Objective,
    SearchSettings,
    StudySettings,
    WorkerSettings,
    has_password,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Everything that a sweep is."""

    name: str
    """Also of its directory and its study."""
    question: str
    expect: str
    """What is expected, written before anything is trained."""
    base: tuple[str, ...]
    """Overrides of every run."""
    space: Space
    search: SearchSettings
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    confirm: Confirmation | None
    resources: WorkerSettings
    study: StudySettings
    launcher: LauncherSettings | None = None
    """Who starts the members; none: this command is the one that trains."""

    def tree(self) -> dict[str, Any]:
        """Return the question as plain values; a file of them asks the same.

        The password of a storage url is left out: PGPASSWORD and ~/.pgpass are where it belongs.
        """
        search, confirm, resources = self.search, self.confirm, self.resources
        devices = resources.devices
        return {
            "name": self.name,
            "question": self.question,
            "expect": self.expect,
            "base": list(self.base),
            "space": {axis.key: _axis_tree(axis) for axis in self.space.axes},
            "search": {
                "method": search.method.value,
                "trials": search.trials,
                "pruner": search.pruner.value,
                "seeds": list(search.seeds),
                "sampler_seed": search.sampler_seed,
                "reduction_factor": search.reduction_factor,
                "in_flight": search.in_flight,
                "starts": [dict(start) for start in search.starts],
            },
            "objective": {each.metric: each.direction.value for each in self.objectives},
            "constraints": {each.metric: _limits(each) for each in self.constraints},
            "confirm": None
            if confirm is None
            else {
                "top": confirm.top,
                "seeds": list(confirm.seeds),
                "split": confirm.split.value,
            },
            "resources": {
                "devices": list(devices) if isinstance(devices, tuple) else devices,
                "cohort": resources.cohort,
                "hang_seconds": resources.hang_seconds,
            },
            "study": {
                "storage": _without_password(self.study.storage),
                "heartbeat_seconds": self.study.heartbeat_seconds,
                "artifacts": self.study.artifacts,
            },
            "launcher": None if self.launcher is None else self.launcher.tree(),
        }


def _axis_tree(axis: Axis) -> str | dict[str, Any]:
    if isinstance(axis, CaseAxis):
        tree: dict[str, Any] = {"cases": {label: list(o) for label, o in axis.cases.items()}}
    else:
        tree = {"values": axis.grammar}
    condition = axis.condition
    if condition is not None:
        tree["when"] = {condition.key: sorted(condition.values)}
    elif "values" in tree:
        return tree["values"]
    return tree


def _limits(constraint: Constraint) -> dict[str, float]:
    limits = {"at_most": constraint.at_most, "at_least": constraint.at_least}
    return {key: limit for key, limit in limits.items() if limit is not None}


def _without_password(url: str | None) -> str | None:
    parts = urlsplit(url or "")
    if url is None or not has_password(url):
        return url
    query = "&".join(p for p in parts.query.split("&") if not p.startswith("password="))
    parts = parts._replace(query=query)
    account, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account.partition(':')[0]}{at}{host}"))
