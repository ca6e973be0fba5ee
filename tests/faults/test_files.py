"""Every kind of file that is read, damaged at random: named, set aside or made again, never a traceback."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from analysis.sources import load_runs, load_sweep
from harness.base.source import find_model, model_fingerprint
from harness.cli.main import dispatch
from harness.config.compose import compose_run
from harness.config.schema import ModelConfig
from harness.errors import RequestError
from harness.launch.jobs import read_jobs
from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.records.answers import Answer, keep_answers, read_answers, samples
from harness.records.columns import Columns, columns_path, make_columns, read_columns
from harness.records.metrics_log import MetricsLog, read_metrics
from harness.records.record import RecordError, read_record
from harness.records.scores import RowScores, keep_scores, read_scores
from harness.study.study import TrialStatus
from harness.sweeping.member import open_study
from harness.sweeping.state import SweepDirectory
from harness.training.checkpoint import (
    Checkpoint,
    Progress,
    load_newest_checkpoint,
    save_checkpoint,
)
from tests.faults.damage import damaged
from tests.faults.tally import tries

TRIES = tries(8, 80)
FEW = tries(2, 12)
STRIDES = [61, pytest.param(1, marks=pytest.mark.faults)]
"""Bytes between two cuts."""


def refused_or(action: Callable[[], object]) -> bool:
    """Whether an action comes to its end, or to a refusal in words."""
    try:
        action()
    except (RequestError, RecordError) as error:
        return bool(str(error))
    return True


@pytest.mark.parametrize("tries", TRIES)
def test_a_record(out, tries, tally):
    file = next(out.glob("runs/*/run.json"))
    sound, chance = file.read_bytes(), random.Random(1)
    with tally("run.json") as row:
        for number in range(tries):
            what, content = damaged(sound, chance)
            file.write_bytes(content)
            row.check(f"{number} {what}", lambda: refused_or(lambda: read_record(file)))
            row.check(f"{number} {what}, report", lambda: refused_or(lambda: load_runs(out)))


@pytest.mark.parametrize("tries", TRIES)
def test_a_state_is_named_and_hides_no_other_sweep(out, tries, tally, capsys):
    shutil.copytree(out / "sweeps" / "small", out / "sweeps" / "other")
    file = out / "sweeps" / "small" / "state.json"
    sound, chance = file.read_bytes(), random.Random(2)
    with tally("state.json") as row:
        for number in range(tries):
            what, content = damaged(sound, chance)
            file.write_bytes(content)

            def shows_both() -> bool:
                capsys.readouterr()  # what the checks of the damage before have said
                assert dispatch(["status", f"paths.out={out}"]) == 0
                said = capsys.readouterr().out
                return said.count("\n") == 2 and "2/2 trials" in said

            row.check(f"{number} {what}, all", shows_both)
            row.check(
                f"{number} {what}, one",
                lambda: dispatch(["status", "small", f"paths.out={out}"]) in (0, 2),
            )
            row.check(
                f"{number} {what}, report", lambda: refused_or(lambda: load_sweep(out, "small"))
            )


@pytest.mark.parametrize("stride", STRIDES)
def test_a_record_and_a_state_cut_anywhere_are_refused(out, stride, tally):
    record, state = next(out.glob("runs/*/run.json")), out / "sweeps/small/state.json"

    def is_refused(file: Path, content: bytes) -> bool:
        file.write_bytes(content)
        try:
            read_record(file) if file == record else load_sweep(out, "small")
        except (RequestError, RecordError):
            return True
        return False

    with tally("run.json and state.json cut") as row:
        for file in (record, state):
            sound = file.read_bytes()
            for end in range(0, len(sound) - 2, stride):  # at the last but one it is whole
                row.check(f"{file.name} at {end}", lambda f=file, c=sound[:end]: is_refused(f, c))
            file.write_bytes(sound)


@pytest.mark.parametrize("stride", STRIDES)
def test_a_series_that_is_cut_keeps_its_whole_lines(out, stride, tally):
    file = next(out.glob("runs/*/metrics.jsonl"))
    sound, rows = file.read_bytes(), read_metrics(file).rows
    with tally("metrics.jsonl cut") as row:
        for end in range(0, len(sound), stride):
            file.write_bytes(sound[:end])
            whole = sound[:end].count(b"\n")
            row.check(f"cut at {end}", lambda whole=whole: read_metrics(file).rows == rows[:whole])


@pytest.mark.parametrize("tries", TRIES)
def test_a_damaged_series_is_counted_and_goes_on(out, tries, tally):
    file = next(out.glob("runs/*/metrics.jsonl"))
    sound, chance = file.read_bytes(), random.Random(3)
    with tally("metrics.jsonl") as row:
        for number in range(tries):
            what, content = damaged(sound, chance)
            file.write_bytes(content)
            row.check(f"{number} {what}", lambda: read_metrics(file).num_damaged_lines >= 0)

            def goes_on() -> bool:
                log = MetricsLog(file)
                log.truncate_after(0)
                log.log(1, {"train/loss": 1.0})
                log.close()
                return read_metrics(file).rows[-1]["step"] == 1

            row.check(f"{number} {what}, appended to", goes_on)


@pytest.mark.parametrize("tries", TRIES)
def test_columns_are_those_of_their_series_or_none(out, tries, tally):
    series = next(out.glob("runs/*/metrics.jsonl"))
    wanted = make_columns(series, keep=True)
    file, chance = columns_path(series), random.Random(14)
    sound = file.read_bytes()
    head = sound.index(b"\n") + 1
    with tally("metrics.columns") as row:
        for number in range(tries):
            what, part = damaged(sound[:head] if number % 2 else sound, chance)
            file.write_bytes(part + sound[head:] if number % 2 else part)

            def is_true() -> bool:
                found = read_columns(series)
                return found is None or _lists(found) == _lists(wanted)

            row.check(f"{number} {what}", is_true)


def _lists(columns: Columns) -> dict[str, tuple[list[float], list[float]]]:
    return {name: (list(steps), list(values)) for name, (steps, values) in columns.curves.items()}


@pytest.mark.parametrize("tries", TRIES)
def test_answers_and_scores_of_rows(tmp_path, tries, tally):
    answers, scores, chance = (
        tmp_path / "answers.jsonl",
        tmp_path / "scores.jsonl",
        random.Random(15),
    )
    given = Answer(row=1, prompt="p", reference="r", answer="a")
    keep_answers(answers, "before", 0, [given])
    keep_answers(answers, "after", 3, [given])
    keep_scores(
        scores, "after", {"eval/loss": RowScores(rows=(0, 1), sums=(0.5, 2.0), weights=(3, 4))}
    )
    sound = {file: file.read_bytes() for file in (answers, scores)}
    with tally("answers.jsonl and scores.jsonl") as row:
        for number in range(tries):
            done = {file: damaged(content, chance) for file, content in sound.items()}
            for file, (_, content) in done.items():
                file.write_bytes(content)

            def are_usable() -> bool:
                said = samples(read_answers(answers))
                found = read_scores(scores, "after").values()
                total = sum(sum(each.sums) / max(sum(each.weights), 1) for each in found)
                keep_answers(answers, "after", 4, [given])
                keep_scores(scores, "before", {})
                return math.isfinite(total) and all(
                    isinstance(t, str) for line in said for t in line
                )

            row.check(f"{number} {[what for what, _ in done.values()]}", are_usable)


@pytest.mark.parametrize("tries", TRIES)
def test_a_kept_question(out, tries, tally):
    file = out / "sweeps/small/sweep.yaml"
    sound, chance = file.read_bytes(), random.Random(4)
    with tally("sweep.yaml") as row:
        for number in range(tries):
            what, content = damaged(sound, chance)
            file.write_bytes(content)
            row.check(f"{number} {what}", lambda: refused_or(lambda: load_question(str(file), [])))
            row.check(
                f"{number} {what}, report", lambda: refused_or(lambda: load_sweep(out, "small"))
            )


@pytest.mark.parametrize("tries", TRIES)
def test_a_list_of_jobs(tmp_path, tries, tally):
    directory = SweepDirectory(tmp_path, "small")
    directory.path.mkdir(parents=True)
    job = {"job_id": "1", "launcher": "local", "where": "here", "submitted_at": "", "log": ""}
    sound, chance = json.dumps([job]).encode(), random.Random(5)
    with tally("jobs.json") as row:
        for number in range(tries):
            what, content = damaged(sound, chance)
            (directory.path / "jobs.json").write_bytes(content)
            row.check(f"{number} {what}", lambda: refused_or(lambda: read_jobs(directory)))


@pytest.mark.parametrize("tries", TRIES)
def test_a_memo_of_fingerprints_never_changes_one(world, tmp_path, tries, tally):
    source = find_model(ModelConfig(name=str(world / "tiny")))
    memo, chance = tmp_path / "fingerprints.json", random.Random(6)
    wanted = model_fingerprint(source, memo)
    sound = memo.read_bytes()
    with tally("fingerprints.json") as row:
        for number in range(tries):
            what, content = damaged(sound, chance)
            memo.write_bytes(content)
            row.check(f"{number} {what}", lambda: model_fingerprint(source, memo) == wanted)


@pytest.mark.parametrize("tries", TRIES)
def test_a_checkpoint_is_one_that_was_saved_or_none(tmp_path, tries, tally):
    chance = random.Random(7)
    with tally("checkpoint") as row:
        for number in range(tries):
            directory = tmp_path / str(number)
            for step in (1, 2):
                weights = {"w": torch.full((64,), float(step))}
                save_checkpoint(
                    directory,
                    Checkpoint(
                        progress=Progress(run_id="r", step=step),
                        adapter=weights,
                        optimizer={"exp_avg": weights["w"]},
                        best_adapter=None,
                    ),
                    keep=2,
                )
            file = chance.choice(sorted((directory / "step-00000002").iterdir()))
            what, content = damaged(file.read_bytes(), chance)
            is_whole = content == file.read_bytes()
            file.write_bytes(content)

            def is_right(directory=directory, is_whole=is_whole) -> bool:
                found, notes = load_newest_checkpoint(directory, "r", torch.device("cpu"))
                assert found is not None
                step = found.progress.step
                return bool((found.adapter["w"] == step).all()) and (step == 1) == bool(notes)

            row.check(f"{number} {file.name} {what}", is_right)


@pytest.mark.parametrize("tries", FEW)
def test_a_study_is_opened_or_set_aside_and_begun_again(trained, out, tries, tally, capsys):
    file = trained[0]
    question = load_question(str(file), [f"paths.out={out}"])
    points = check_space(question)
    directory = SweepDirectory(out, "small")
    sound, chance = directory.study.read_bytes(), random.Random(8)
    with tally("study.db") as row:
        for number in range(tries):
            what, content = damaged(sound, chance)
            for old in directory.path.glob("study.db*"):
                old.unlink()
            directory.study.write_bytes(content)

            def opens() -> bool:
                study = open_study(question, points, directory, None)
                told = [t for t in study.trials if t.status is TrialStatus.completed]
                study.close()
                return len(told) in (0, 1, 2)

            row.check(f"{number} {what}", lambda opens=opens: refused_or(opens))


@pytest.mark.parametrize("tries", FEW)
def test_a_cached_base_and_cached_data_are_as_they_were_written(world, tmp_path, tries, tally):
    from harness.base.build import build_base, load_tokenizer
    from harness.data.prepare import prepare_data

    config = compose_run(
        [
            *(f"model={world / 'tiny'}", "data=pairs", f"data.path={world / 'sums.jsonl'}"),
            *("data.validation_rows=8", "data.test_rows=8", "quant=nf4", "data.max_length=64"),
        ]
    )
    source = find_model(config.model)
    tokenizer = load_tokenizer(source, config.model)

    def logits() -> torch.Tensor:
        base = build_base(
            source,
            config.model,
            config.quant,
            fingerprint="f",
            device=torch.device("cpu"),
            cache=tmp_path,
        )
        with torch.no_grad():
            return base.model(input_ids=torch.arange(8)[None]).logits

    def rows() -> tuple[torch.Tensor, dict]:
        found = prepare_data(config.data, tokenizer, "t", tmp_path / "data")
        return found.train.input_ids_NT, found.report.as_dict()

    wanted, (ids, report), chance = logits(), rows(), random.Random(9)
    bases = [p for p in tmp_path.glob("bases/*/*") if p.is_file()]
    sound = {p: p.read_bytes() for p in [*bases, *tmp_path.glob("data/*.safetensors")]}
    with tally("cached base and data") as row:
        for number in range(tries):
            file = chance.choice(sorted(sound))
            what, content = damaged(sound[file], chance)
            file.write_bytes(content)
            if file in bases:
                row.check(f"{number} {file.name} {what}", lambda: torch.equal(logits(), wanted))
            else:

                def is_same() -> bool:
                    found, said = rows()
                    return torch.equal(found, ids) and said == report

                row.check(f"{number} {file.name} {what}", is_same)
            for path, content in sound.items():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)


def test_a_torn_record_is_found_on_resume_said_and_made_again(trained, out, capfd, tally):
    file, _ = trained
    record = sorted(out.glob("runs/*/run.json"))[0]
    evals = read_record(record).evals
    record.write_bytes(record.read_bytes()[:300])
    with tally("torn record, resumed") as row:
        row.check("resumes", lambda: dispatch(["sweep", str(file), f"paths.out={out}"]) == 0)
        row.check("said", lambda: "set aside as run.json.damaged-" in capfd.readouterr().err)
        row.check("made again", lambda: read_record(record).evals == evals)
        row.check("kept", lambda: len(list(Path(record.parent).glob("run.json.damaged-*"))) == 1)
