"""What the live page shows of a sweep, as plain values: the state, the leaders, curves, what it was told."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.histories import History, read_histories
from harness.commands.status import answer_text
from harness.errors import RequestError
from harness.question.axes import CaseAxis
from harness.question.load import load_question
from harness.question.question import Question
from harness.records.metrics import METRICS, format_value
from harness.records.redact import redact, redact_tree
from harness.sweeping.display import device_text, interval_text, leaders, problems, progress_text
from harness.sweeping.instructions import Instructions, as_told
from harness.sweeping.state import (
    UNENDED,
    RunLine,
    SweepDirectory,
    SweepState,
    SweepStatus,
    read_state,
)

LEADERS = 10
MOST_RUNS = 60
"""Lines of runs: those that have not ended, then the last of the others."""
MOST_CURVES = 8
MOST_POINTS = 200
"""Points of one curve; of more, evenly spaced ones and the last."""
MOST_WORDS = 12
"""Lines of the log, and instructions, that are shown."""
TRAIN_LOSS = "train/loss"


def live_view(out: Path, name: str) -> dict[str, Any]:
    """Return everything that the page shows. Raises RequestError where the sweep's state cannot be read."""
    directory = SweepDirectory(out, name)
    state = read_state(directory)
    points = point_of_runs(state)
    runs = _runs_shown(state)
    metric = next(iter(state.objectives))
    told = Instructions(directory.instructions).read_on()
    view = {
        "name": state.name,
        "question": state.question,
        "expect": state.expect,
        "status": state.status.value,
        "answer": _answer(out, name, state),
        "progress": progress_text(state),
        "share_done": state.share_done,
        "complaint": state.complaint,
        "updated_at": state.updated_at,
        "trials_requested": state.trials_requested,
        "takes_trials": state.method != "grid",
        "is_driven": state.status is SweepStatus.running,
        "devices": [device_text(line) for line in state.devices],
        "objectives": [METRICS[each].label for each in state.objectives],
        "leaders": [
            {
                "trial": trial.number,
                "point": _spelled(trial.point),
                "values": [
                    format_value(each, value)
                    for each, value in zip(state.objectives, trial.values or (), strict=True)
                ],
                "run_id": next(iter(trial.runs), ""),
            }
            for trial in leaders(state)[:LEADERS]
        ],
        "confirmed": [
            {
                "point": _spelled(line.point),
                "values": [interval_text(each, line.values[each]) for each in state.objectives],
                "n": len(line.values[metric]),
            }
            for line in state.confirmed
        ],
        "runs": [
            {
                "run_id": run.run_id,
                "role": run.role,
                "point": _spelled(points.get(run.run_id, {})),
                "seed": run.seed,
                "status": run.status.replace("_", " "),
                "step": run.step,
                "total_steps": run.total_steps,
                "error": run.error,
                "has_ended": run.status not in UNENDED,
            }
            for run in runs
        ],
        "runs_in_all": len(state.runs),
        "problems": problems(state)[:MOST_WORDS],
        "curves": _curves(out, state, runs, points),
        "axes": _axes(asked_question(directory)),
        "told": [f"{each.given_at}  {each.text}" for each in told[-MOST_WORDS:]],
        "log": _last_lines(directory.log),
    }
    return redact_tree(view)


def asked_question(directory: SweepDirectory) -> Question | None:
    """Return what a sweep is asked now; None where its kept question cannot be read.

    Read again when a file has changed: the page asks every other second.
    """
    files = (directory.question, directory.instructions)
    stamps = [file.stat().st_mtime_ns if file.exists() else None for file in files]
    key = repr((files, stamps))
    if key not in _QUESTIONS:
        _QUESTIONS.clear()
        try:
            question = load_question(str(directory.question), [])
            told = Instructions(directory.instructions).read_on()
            _QUESTIONS[key] = as_told(question, told)
        except RequestError:
            _QUESTIONS[key] = None
    return _QUESTIONS[key]


_QUESTIONS: dict[str, Question | None] = {}


def point_of_runs(state: SweepState) -> dict[str, dict[str, str]]:
    """Return the point of every run that has one."""
    found: dict[str, dict[str, str]] = {}
    for line in (*state.trials, *state.confirmed):
        found |= dict.fromkeys(line.runs, line.point)
    return found


def _answer(out: Path, name: str, state: SweepState) -> str | None:
    """Return what a sweep has found, read once: it is over, and its records stay."""
    key = (out, name, state.updated_at)
    if key not in _ANSWERS:
        _ANSWERS.clear()
        _ANSWERS[key] = answer_text(out, name, state)
    return _ANSWERS[key]


_ANSWERS: dict[tuple[Path, str, str], str | None] = {}


def _runs_shown(state: SweepState) -> list[RunLine]:
    """Return the runs in training, those that wait, then the last that ended."""
    training = [run for run in state.runs if run.status == "training"]
    waiting = [run for run in state.runs if run.status in UNENDED and run not in training]
    ended = [run for run in state.runs if run.status not in UNENDED]
    return [*training, *waiting[: MOST_RUNS // 2], *reversed(ended)][:MOST_RUNS]


def _spelled(point: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in point.items())


def _axes(question: Question | None) -> list[dict[str, str]]:
    axes = () if question is None else question.space.axes
    return [
        {"key": axis.key, "described": axis.described}
        for axis in axes
        if not isinstance(axis, CaseAxis)
    ]


def _curves(
    out: Path,
    state: SweepState,
    runs: Sequence[RunLine],
    points: Mapping[str, dict[str, str]],
) -> list[dict[str, Any]]:
    """Return a chart of the objective and one of the training loss: runs in training, and the leaders."""
    best = [trial.runs[0] for trial in leaders(state)[:LEADERS] if trial.runs]
    training = [run.run_id for run in runs if run.status == "training"]
    ended = [run.run_id for run in runs if run.status not in UNENDED]
    shown = list(dict.fromkeys([*training, *best, *ended]))[:MOST_CURVES]
    metric = next((each for each in state.objectives if each.startswith("eval/")), "eval/loss")
    histories = read_histories(out, shown, (metric, TRAIN_LOSS))
    lines = {run.run_id: run for run in state.runs}
    return [
        {
            "title": METRICS[each].label,
            "lines": [
                {
                    "run_id": run_id,
                    "label": _label(lines[run_id], points.get(run_id, {})),
                    "points": _thinned(history, each),
                }
                for run_id, history in histories.items()
                if run_id in lines and each in history.curves
            ],
        }
        for each in dict.fromkeys((metric, TRAIN_LOSS))
    ]


def _label(run: RunLine, point: Mapping[str, str]) -> str:
    role = "" if run.role == "search" else f", {run.role}"
    return f"{_spelled(point) or run.run_id}, seed {run.seed}{role}"


def _thinned(history: History, metric: str) -> list[tuple[float, float]]:
    """Return at most so many points of a curve, the last among them; a browser's JSON has no NaN."""
    steps, values = history.curves[metric]
    pairs = [
        (float(step), float(value))
        for step, value in zip(steps, values, strict=True)
        if abs(value) < float("inf")
    ]
    every = -(-len(pairs) // MOST_POINTS) or 1
    return [*pairs[:-1:every], *pairs[-1:]]


def _last_lines(log: Path) -> list[str]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [redact(line) for line in lines[-MOST_WORDS:]]
