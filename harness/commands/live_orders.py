"""From what a user asks for on the live page to an instruction that is written down, or a refusal."""

import shlex
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.commands.live_view import asked_question, point_of_runs
from harness.config.schema import RunConfig
from harness.errors import RequestError, RunFailed, near_names
from harness.question.check_space import check_space
from harness.question.keys import WITHOUT_EFFECT, key_of
from harness.question.points import Point
from harness.question.question import Question
from harness.question.widen import with_trials, with_value
from harness.records.redact import redact
from harness.sweeping.check import check_without_device
from harness.sweeping.instructions import Instruction, InstructionKind, Instructions
from harness.sweeping.messages import Role
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import UNENDED, SweepDirectory, SweepState, SweepStatus, read_state

MOST_MORE = 10_000
"""Trials that are added at once."""
_SHAPES = {
    InstructionKind.stop_run: {"run_id": str},
    InstructionKind.stop_sweep: {},
    InstructionKind.more_trials: {"more": int},
    InstructionKind.add_value: {"axis": str, "value": str},
    InstructionKind.clone: {"run_id": str, "overrides": str},
}
"""What each kind is asked with, beside its name under `kind`."""


def tell(out: Path, name: str, asked: Any) -> str:
    """Write down what is asked of a sweep; returns what happens now, in a sentence.

    Raises RequestError for what cannot be done, in words for the page; then nothing is written.
    """
    kind, given = _read(asked)
    directory = SweepDirectory(out, name)
    state = read_state(directory)
    instruction = _INSTRUCTIONS[kind](directory, state, given)
    Instructions(directory.instructions).append(instruction)
    directory.append_log(f"asked on the live page to {instruction.text}")
    if state.status is SweepStatus.running:
        return f"The sweep is told to {instruction.text}."
    return (
        f"Written down: {instruction.text}. No driver works on it here; "
        f"`harness sweep {name}` goes on and does it."
    )


def _read(asked: Any) -> tuple[InstructionKind, dict[str, Any]]:
    kinds = [kind.value for kind in InstructionKind]
    if not isinstance(asked, dict) or asked.get("kind") not in kinds:
        raise RequestError(f"give a kind, one of {', '.join(kinds)}")
    kind = InstructionKind(asked["kind"])
    shape = _SHAPES[kind]
    given = {key: value for key, value in asked.items() if key != "kind"}
    if given.keys() != shape.keys() or any(type(given[key]) is not of for key, of in shape.items()):
        wanted = ", ".join(f"{key} ({of.__name__})" for key, of in shape.items()) or "nothing else"
        raise RequestError(f"{kind.value} is asked with {wanted}")
    return kind, given


def _question(directory: SweepDirectory) -> Question:
    question = asked_question(directory)
    if question is None:
        raise RequestError(
            f"{directory.question} cannot be read, so nothing can be added; `harness sweep` writes it again"
        )
    return question


def _needs_driver(state: SweepState) -> None:
    if state.status is not SweepStatus.running:
        raise RequestError(f"nothing is to be stopped: the sweep is {state.status.value}")


def _stop_run(
    directory: SweepDirectory, state: SweepState, given: Mapping[str, Any]
) -> Instruction:
    _needs_driver(state)
    run_id = given["run_id"]
    running = {run.run_id for run in state.runs if run.status in UNENDED}
    if run_id not in running:
        raise RequestError(
            f"no run {run_id!r} of this sweep is waiting or training{near_names(run_id, running)}"
        )
    return Instruction(kind=InstructionKind.stop_run, run_id=run_id)


def _stop_sweep(
    directory: SweepDirectory, state: SweepState, given: Mapping[str, Any]
) -> Instruction:
    _needs_driver(state)
    return Instruction(kind=InstructionKind.stop_sweep)


def _more_trials(
    directory: SweepDirectory, state: SweepState, given: Mapping[str, Any]
) -> Instruction:
    more = given["more"]
    if not 1 <= more <= MOST_MORE:
        raise RequestError(f"{more} trials cannot be added; give 1 to {MOST_MORE:,}")
    question = _question(directory)
    trials = (question.search.trials or 0) + more
    with_trials(question, trials)
    return Instruction(kind=InstructionKind.more_trials, trials=trials)


def _add_value(
    directory: SweepDirectory, state: SweepState, given: Mapping[str, Any]
) -> Instruction:
    question = _question(directory)
    wider = with_value(question, given["axis"], given["value"])
    if wider == question:
        raise RequestError(f"{given['axis']} has {given['value']} already")
    known = {tuple(point.items()) for point, _ in check_space(question)}
    new = [each for each in check_space(wider) if tuple(each[0].items()) not in known]
    _check_against_model(new)
    return Instruction(kind=InstructionKind.add_value, axis=given["axis"], value=given["value"])


def _clone(directory: SweepDirectory, state: SweepState, given: Mapping[str, Any]) -> Instruction:
    question, run_id = _question(directory), given["run_id"]
    point, own = _what_it_is(directory, state, question, run_id)
    changes = _changes(given["overrides"])
    keys = {key_of(change) for change in changes}
    point = {key: value for key, value in point.items() if key not in keys}
    overrides = [*(each for each in own if key_of(each) not in keys), *changes]
    request = RequestMaker(question).request(point, overrides, Role.clone)
    clone_id = request.identity.run_id
    known = next((run for run in state.runs if run.run_id == clone_id), None)
    if known is not None:
        raise RequestError(f"that is {clone_id}, which the sweep has: it is {known.status}")
    _check_against_model([(point, request.config)])
    return Instruction(
        kind=InstructionKind.clone,
        run_id=run_id,
        point=point,
        overrides=overrides,
        clone_id=clone_id,
    )


def _what_it_is(
    directory: SweepDirectory, state: SweepState, question: Question, run_id: str
) -> tuple[Point, list[str]]:
    """Return a run's point, and what it has beyond that. Raises RequestError for one that is not here."""
    line = next((run for run in state.runs if run.run_id == run_id), None)
    if line is None or line.role == Role.probe.value:
        runs = [run.run_id for run in state.runs if run.role != Role.probe.value]
        raise RequestError(f"no run {run_id!r} of this sweep{near_names(run_id, runs)}")
    for told in Instructions(directory.instructions).read_on():
        if told.clone_id == run_id:
            return dict(told.point), list(told.overrides)
    own = [f"seed={line.seed}"]
    if line.role == Role.confirmation.value and question.confirm is not None:
        own.append(f"eval.split={question.confirm.split.value}")
    return dict(point_of_runs(state).get(run_id, {})), own


def _changes(text: str) -> list[str]:
    """Return the overrides that a user has written, as a shell would take them apart."""
    try:
        changes = shlex.split(text)
    except ValueError as error:
        raise RequestError(f"{text!r} cannot be read: {error}") from error
    if redact(text) != text:
        raise RequestError("that holds what looks like a secret, and would be written down")
    if not changes:
        raise RequestError("give what is to be different, such as optim.lr=3e-3 lora.rank=16")
    for change in changes:
        section = key_of(change).partition(".")[0]
        if change.startswith(("+", "~")) or section in (*WITHOUT_EFFECT, "hydra"):
            raise RequestError(
                f"{change}: a clone differs in what shapes its result; {', '.join(WITHOUT_EFFECT)} stay as "
                "they are in the sweep"
            )
    return changes


def _check_against_model(points: list[tuple[Point, RunConfig]]) -> None:
    """Refuse what only model, tokenizer and data can: a process with torch is asked, some seconds."""
    if not points:
        return
    with tempfile.TemporaryDirectory(prefix="harness-") as logs:
        try:
            check_without_device(points, Path(logs), keep=False)
        except RunFailed as error:
            raise RequestError(f"it cannot be checked: {error}") from error


_INSTRUCTIONS: dict[
    InstructionKind, Callable[[SweepDirectory, SweepState, Mapping[str, Any]], Instruction]
] = {
    InstructionKind.stop_run: _stop_run,
    InstructionKind.stop_sweep: _stop_sweep,
    InstructionKind.more_trials: _more_trials,
    InstructionKind.add_value: _add_value,
    InstructionKind.clone: _clone,
}
