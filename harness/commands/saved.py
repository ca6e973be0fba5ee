"""What a command line calls a run that has ended: its id, the start or hash of it, its directory, a sweep."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.errors import RequestError, near_names
from harness.parsing import home_path
from harness.question.keys import key_of
from harness.records.metrics import Direction
from harness.records.record import RecordError, RunStatus, read_record
from harness.records.run_directory import RunDirectory
from harness.request import SavedRun, saved_run
from harness.sweeping.state import SweepDirectory, SweepState, read_state

_FREE = ("paths", "resources")
"""Sections that say where a run is opened, not what it is."""


def place_of(overrides: Sequence[str], also: Sequence[str] = ()) -> RunConfig:
    """Return a configuration that says where runs lie and what may be used.

    `also`: further keys that could have been given.

    Raises RequestError for an override of anything else: the rest stands in the runs' records.
    """
    for override in overrides:
        key = key_of(override)
        if key.partition(".")[0] not in _FREE:
            raise RequestError(
                f"{override} would be ignored: what a run is stands in its record; "
                f"{', '.join(f'{key}=' for key in (*also, 'paths.out', 'paths.cache'))} and resources.*= "
                "can be given"
            )
    return compose_run(overrides)


def find_saved(word: str, place: RunConfig) -> SavedRun:
    """Return the run that a word names, or the best of the sweep that it names. Raises RequestError."""
    return saved_run(_directory(word, Path(place.paths.out)), place.paths, place.resources)


def _directory(word: str, out: Path) -> RunDirectory:
    path = home_path(word)
    if (path / "run.json").is_file():
        return RunDirectory(path)
    known = sorted(file.parent.name for file in (out / "runs").glob("*/run.json"))
    found = [name for name in known if name.startswith(word) or name.endswith(f"-{word}")]
    if word in known:
        found = [word]
    if len(found) == 1:
        return RunDirectory(out / "runs" / found[0])
    if len(found) > 1:
        shown = ", ".join(found[:4]) + (" …" if len(found) > 4 else "")
        raise RequestError(
            f"{word!r} begins the ids of {len(found)} runs: {shown}; give more of one"
        )
    sweeps = sorted(file.parent.name for file in (out / "sweeps").glob("*/state.json"))
    if word in sweeps:
        return _best_run(read_state(SweepDirectory(out, word)), out)
    raise RequestError(
        f"{word!r} is no run or sweep under {out}{near_names(word, [*known, *sweeps])}; give a run's id, "
        "the start or hash of it, its directory, or a sweep's name"
    )


def _best_run(state: SweepState, out: Path) -> RunDirectory:
    """Return the run of a sweep that did best in its first objective: of the confirmed, if there are any."""
    objective, direction = next(iter(state.objectives.items()))
    sign = -1.0 if direction == Direction.maximize.value else 1.0
    confirmed = [
        (fmean(line.values[objective]), line.runs)
        for line in state.confirmed
        if line.values.get(objective)
    ]
    searched = [
        (line.values[0], line.runs) for line in state.trials if line.values and line.feasible
    ]
    for _, runs in sorted(confirmed or searched, key=lambda each: sign * each[0]):
        for run in runs:
            directory = RunDirectory(out / "runs" / run)
            if _is_completed(directory):
                return directory
    raise RequestError(f"sweep {state.name} has no run yet that has ended well")


def _is_completed(directory: RunDirectory) -> bool:
    try:
        return read_record(directory.record).status is RunStatus.completed
    except RecordError:
        return False
