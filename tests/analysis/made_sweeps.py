"""A sweep's directory with made-up results, and the configurations that its question really asks for."""

import hashlib
import itertools
from pathlib import Path

from harness.config.compose import config_tree
from harness.question.check_space import sample_points
from harness.question.compare import combinations_of, matches
from harness.question.load import load_question, question_text
from harness.question.points import Point
from harness.question.question import Question
from harness.records.record import (
    Estimate,
    MeasuredIn,
    Record,
    RunDirectory,
    RunStatus,
    read_record,
    write_record,
)
from harness.sweeping.messages import Role
from harness.sweeping.outcome import measure
from harness.sweeping.requests import Request, RequestMaker
from harness.sweeping.state import (
    ConfirmedLine,
    RunLine,
    SweepDirectory,
    SweepState,
    SweepStatus,
    TrialLine,
    write_state,
)

MAX_TRIALS = 12


def made_sweep(name: str, out: Path) -> None:
    """Write the records and the state of a finished sweep over a ready question, without training."""
    question = load_question(name, [f"paths.out={out}", "tracker=none"])
    maker = RequestMaker(question)
    trials: dict[str, tuple[Point, list[str]]] = {}
    lines: list[RunLine] = []
    for point in _points(question):
        requests = [maker.request(point, [f"seed={s}"], Role.search) for s in question.search.seeds]
        cell = requests[0].identity.cell_id
        if cell in trials:
            continue
        number = len(trials)
        trials[cell] = (point, [r.identity.run_id for r in requests])
        lines += [_written(question, r, Role.search, number) for r in requests]
        lines.append(_written(question, maker.probe(requests[0].config), Role.probe, number))
    assert question.confirm is not None
    confirmed = []
    points = [point for point, _ in trials.values()]
    for number, compared in _confirmed(question, points).items():
        point = points[number]
        overrides = [[f"seed={s}", "eval.split=test"] for s in question.confirm.seeds]
        requests = [maker.request(point, given, Role.confirmation) for given in overrides]
        lines += [_written(question, r, Role.confirmation, number) for r in requests]
        ids = [request.identity.run_id for request in requests]
        values = {o.metric: _values(requests, o.metric) for o in question.objectives}
        confirmed.append(
            ConfirmedLine(point=point, trial=number, runs=ids, values=values, compared=compared)
        )
    _write_state(
        question, SweepDirectory(out, question.name), list(trials.values()), lines, confirmed
    )


def _confirmed(question: Question, points: list[Point]) -> dict[int, list[Point]]:
    """Return the first trial of each compared combination with what it stands for, then the first of all."""
    assert question.confirm is not None
    chosen: dict[int, list[Point]] = {}
    for compare in question.compare:
        for combination in combinations_of(compare, question.space):
            found = (n for n, p in enumerate(points) if matches(p, combination, compare.axes))
            if (number := next(found, None)) is not None:
                chosen.setdefault(number, []).append(combination)
    for number in range(question.confirm.top):
        chosen.setdefault(number, [])
    return chosen


def _points(question: Question) -> list[Point]:
    if question.space.num_points is None:
        return sample_points(question)[:MAX_TRIALS]
    return list(itertools.islice(question.space.points(), MAX_TRIALS))


def _written(question: Question, request: Request, role: Role, trial: int) -> RunLine:
    run_id = request.identity.run_id
    draw = int(hashlib.sha256(run_id.encode()).hexdigest()[:8], 16) / 2**32
    is_probe = role is Role.probe
    scores = {"eval/loss": 1 + draw, "eval/exact_match": draw}
    record = Record(
        run_id=run_id,
        status=RunStatus.diverged if draw > 0.97 and not is_probe else RunStatus.completed,
        config=config_tree(request.config),
        metrics={"adapter/trainable_params": 1000 * request.config.lora.rank, "train/loss": draw}
        | (
            {"memory/peak_bytes": 2.0**25 * (1 + draw), "throughput/step_ms": 9.0}
            if is_probe
            else {}
        ),
        evals={}
        if is_probe
        else {"after": {k: Estimate(value=v, standard_error=None, n=1) for k, v in scores.items()}},
        measured_in=MeasuredIn.probe if is_probe else MeasuredIn.cohort,
        provenance={
            "cell_id": request.identity.cell_id,
            "sweep": {"name": question.name, "role": role.value, "trial": trial},
        },
        wall_seconds=1.0,
    )
    directory = RunDirectory(Path(request.config.paths.out) / "runs" / run_id)
    directory.path.mkdir(parents=True, exist_ok=True)
    write_record(directory.record, record)
    return RunLine(
        run_id=run_id,
        role=role.value,
        seed=request.config.seed,
        status=record.status.value,
        step=0,
        total_steps=None,
        was_there=False,
        error=None,
    )


def _values(requests: list[Request], metric: str) -> list[float]:
    """Return a metric of each completed run that has it, as the driver writes it into the state."""
    directories = (Path(r.config.paths.out) / "runs" / r.identity.run_id for r in requests)
    records = (read_record(RunDirectory(directory).record) for directory in directories)
    found = (measure(r, metric) for r in records if r.status is RunStatus.completed)
    return [value for value in found if value is not None]


def _write_state(
    question: Question,
    directory: SweepDirectory,
    trials: list[tuple[Point, list[str]]],
    runs: list[RunLine],
    confirmed: list[ConfirmedLine],
) -> None:
    directory.path.mkdir(parents=True)
    directory.question.write_text(question_text(question))
    state = SweepState(
        name=question.name,
        question=question.question,
        expect=question.expect,
        method=question.search.method.value,
        objectives={o.metric: o.direction.value for o in question.objectives},
        trials_requested=len(trials),
        status=SweepStatus.finished,
        trials=[
            TrialLine(
                number=number,
                point=point,
                status="completed",
                values=[1.0] * len(question.objectives),
                feasible=True,
                runs=run_ids,
                reason=None,
            )
            for number, (point, run_ids) in enumerate(trials)
        ],
        runs=list({line.run_id: line for line in runs}.values()),
        confirmed=confirmed,
    )
    write_state(directory, state)
