"""`harness worker`: join a sweep whose study is in PostgreSQL, from another process or machine."""

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.commands.mirror import mirror_finished_sweep
from harness.config.compose import compose_run
from harness.errors import RequestError
from harness.parsing import Unreadable, read_yaml, shaped
from harness.question.check_space import check_space
from harness.question.keys import key_of
from harness.question.load import question_of
from harness.question.question import Question
from harness.study.database import open_database, question_in
from harness.sweeping.display import progress_text
from harness.sweeping.member import Member
from harness.sweeping.requests import base_of
from harness.sweeping.state import SweepDirectory, SweepStatus
from harness.training.stop import stop_on_signals

WORKER_HELP = """\
usage: harness worker NAME study.storage=postgresql://user@host/database [override…]

Join the sweep NAME that `harness sweep NAME study.storage=…` has begun: ask for trials, train them on the
devices of this machine, tell their results, until the sweep is finished. As many workers as there are
machines, at any time; one that dies is noticed within two heartbeats, and its trials go to the others.

  study.storage=…                 where the study is; without it, what out/sweeps/NAME/sweep.yaml says.
                                  Passwords belong into PGPASSWORD or ~/.pgpass
  resources.devices=[0,2]         of this machine: auto, cpu, cpu:N, or indices of GPUs
  resources.cohort=4              runs side by side at most, here
  resources.hang_seconds=1800     silence after which a device's process is taken to hang
  study.artifacts=DIRECTORY       where runs are left for members that do not share this out/
  paths.out=DIRECTORY             where this machine keeps its runs: best on a file system that all share
  tracker=wandb_online            and whatever else changes no result
  --config-dir DIR                the groups of one's own that the sweep was asked with

Everything else is asked by the sweep. SIGTERM or Ctrl-C once: every run in flight keeps a checkpoint, and
its lease is given back.
"""

_OWN = ("paths", "tracker", "checkpoint", "resources", "study")
"""Sections that a member may set for itself; of `study` its storage and artifacts."""
_OF_ALL = ("study.heartbeat_seconds",)


def worker_command(name: str, overrides: Sequence[str]) -> int:
    """Work on a sweep until it is finished; returns the exit code: 1 where a run failed, 130 if stopped."""
    for override in overrides:
        section = key_of(override).partition(".")[0]
        if section not in _OWN or key_of(override) in _OF_ALL:
            raise RequestError(
                f"{override}: a member answers the question as it was asked; it can choose "
                f"{', '.join(_OWN)}; begin another sweep with `harness sweep` to ask something else"
            )
    question = _question(name, overrides)
    points = check_space(question)
    base = compose_run(base_of(question))
    directory = SweepDirectory(Path(base.paths.out), question.name)
    with stop_on_signals() as stop:
        member = Member(question, points, directory, stop, collect=False)
        state = member.run()
    if member.ends_the_sweep:
        mirror_finished_sweep(base.tracker, Path(base.paths.out), directory, state)
    print(progress_text(state))
    if state.status is SweepStatus.interrupted:
        print(
            "harness: this worker has left; every run it had in flight has a checkpoint, and waits for "
            "another",
            file=sys.stderr,
        )
        return 130
    return int(any(run.status == "failed" for run in state.runs))


def _storage_in(file: Path) -> str | None:
    try:
        tree = read_yaml(file.read_bytes())
        study = tree.get("study") if isinstance(tree, dict) else None
        return shaped(str | None, (study if isinstance(study, dict) else {}).get("storage"))
    except (OSError, Unreadable) as error:
        raise RequestError(
            f"{file}, which says where the study is, cannot be used: {error}; give "
            "study.storage=postgresql://user@host/database"
        ) from error


def _question(name: str, overrides: Sequence[str]) -> Question:
    """Return the question that the study was asked, with what this member has of its own."""
    given = [o.partition("=")[2] for o in overrides if o.startswith("study.storage=")]
    out = Path(compose_run([o for o in overrides if o.startswith("paths.")]).paths.out)
    file = SweepDirectory(out, name).question
    if given:
        storage = given[-1]
    elif file.exists():
        storage = _storage_in(file)
    else:
        raise RequestError(
            f"harness worker {name} needs study.storage=postgresql://user@host/database: {file}, which "
            "could say it, is not here"
        )
    if storage is None or not storage.startswith("postgres"):
        raise RequestError(
            f"the study of {name} is {storage or 'a file, study.db'}, which one driver writes alone; begin "
            "the sweep with study.storage=postgresql://user@host/database, and workers can join it"
        )
    database = open_database(storage)
    try:
        tree = question_in(database, name)
    finally:
        database.engine.dispose()
    tree = {**tree, "launcher": None, "study": {**tree["study"], "storage": storage}}
    return question_of(tree, name, [o for o in overrides if not o.startswith("study.storage=")])
