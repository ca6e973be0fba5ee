"""What users tell a sweep while it goes on, and what becomes of it: now, after a resume, among members."""

import json
from dataclasses import replace
from pathlib import Path

from analysis.frame import Role
from analysis.sources import load_sweep
from harness.cli.main import dispatch
from harness.question.axes import ChoiceAxis
from harness.question.load import load_question
from harness.question.points import Space
from harness.question.widen import with_trials, with_value
from harness.records.record import RunStatus, read_records
from harness.study.database import open_engine
from harness.study.leases import Leases
from harness.study.study import Study
from harness.sweeping import messages
from harness.sweeping.instructions import Inbox, Instruction, InstructionKind, Instructions, as_told
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import SweepDirectory, SweepStatus, read_state


def directory_of(file: Path) -> SweepDirectory:
    directory = SweepDirectory(file.parent / "out", file.stem)
    directory.path.mkdir(parents=True, exist_ok=True)
    return directory


def tell(file: Path, kind: InstructionKind, **parts) -> Instruction:
    instruction = Instruction(kind=kind, **parts)
    Instructions(directory_of(file).instructions).append(instruction)
    return instruction


def ranks_of(file: Path) -> list[int]:
    records, _ = read_records(file.parent / "out")
    return sorted(record.config["lora"]["rank"] for record in records)


# The file ----------------------------------------------------------------------------------------


def test_instructions_are_read_once_each_and_a_torn_line_costs_no_other(tmp_path):
    file = Instructions(tmp_path / "instructions.jsonl")
    first = Instruction(kind=InstructionKind.stop_sweep)
    file.append(first)
    assert file.read_on() == [first]
    assert file.read_on() == []
    with file.file.open("ab") as raw:
        raw.write(b'{"kind": "stop_run", "run')  # its writer is killed here
    assert file.read_on() == []
    second = Instruction(kind=InstructionKind.more_trials, trials=9)
    file.append(second)
    with file.file.open("ab") as raw:
        raw.write(b'{"kind": "burn"}\n[1]\n\xff\n')
    assert file.read_on() == [second]
    assert Instructions(file.file).read_on() == [first, second]


def test_a_question_is_asked_as_it_was_told(ask):
    search = {"method": "random", "trials": 4}
    question = load_question(str(ask(space={"lora.rank": "choice(2, 8)"}, search=search)), [])
    told = [
        Instruction(kind=InstructionKind.add_value, axis="lora.rank", value="4"),
        Instruction(kind=InstructionKind.more_trials, trials=9),
    ]
    assert as_told(question, told) == with_trials(with_value(question, "lora.rank", "4"), 9)


# The sweep ---------------------------------------------------------------------------------------


def test_a_sweep_does_what_it_was_told_once_and_after_a_resume_again_nothing(ask, capsys):
    file = ask(confirm={"seeds": [7], "split": "test"}, compare={"lora.rank": "each"})
    assert dispatch(["sweep", str(file)]) == 0
    directory = directory_of(file)
    trained = read_state(directory).trials[0].runs[0]

    tell(file, InstructionKind.add_value, axis="lora.rank", value="4")
    tell(file, InstructionKind.stop_sweep)  # before the driver that will read it: nobody heard it
    changed = ["seed=0", "optim.lr=3e-3"]
    tell(
        file,
        InstructionKind.clone,
        run_id=trained,
        point={"lora.rank": "1"},
        overrides=changed,
        clone_id="x",
    )
    assert dispatch(["sweep", str(file)]) == 0
    state = read_state(directory)
    assert state.status is SweepStatus.finished
    assert [trial.point["lora.rank"] for trial in state.trials] == ["1", "2", "4"]
    assert len(state.confirmed) == 3, "the new level is confirmed beside the others"
    (clone,) = [line for line in state.runs if line.role == "clone"]
    records, _ = read_records(file.parent / "out")
    (record,) = [each for each in records if each.run_id == clone.run_id]
    assert record.config["optim"]["lr"] == 3e-3
    assert record.provenance["sweep"]["role"] == "clone"

    started = {each.run_id: each.started_at for each in records}
    assert dispatch(["sweep", str(file)]) == 0
    records, _ = read_records(file.parent / "out")
    assert {each.run_id: each.started_at for each in records} == started
    rows = load_sweep(file.parent / "out", file.stem).rows_of(Role.clone)
    assert [row["run_id"] for row in rows] == [clone.run_id]


def test_a_run_that_was_stopped_before_it_began_is_pruned_and_stays_so(ask):
    file = ask()
    question = load_question(str(file), [])
    request = RequestMaker(question).request({"lora.rank": "2"}, ["seed=0"], messages.Role.search)
    tell(file, InstructionKind.stop_run, run_id=request.identity.run_id)
    for _ in range(2):
        assert dispatch(["sweep", str(file)]) == 0
        state = read_state(directory_of(file))
        assert [trial.status for trial in state.trials] == ["completed", "pruned"]
        records = {each.run_id: each for each in read_records(file.parent / "out")[0]}
        record = records[request.identity.run_id]
        assert record.status is RunStatus.pruned
        assert record.notes == ["stopped by hand in sweep small"]
        assert not (request.directory.path / "adapter").exists()


def test_an_instruction_that_cannot_be_obeyed_costs_the_sweep_nothing(ask):
    file = ask()
    tell(file, InstructionKind.more_trials, trials=99)
    tell(file, InstructionKind.add_value, axis="quant.format", value="nf4")
    tell(file, InstructionKind.clone, point={}, overrides=["lora.rank=0"], clone_id="x")
    assert dispatch(["sweep", str(file)]) == 0
    assert ranks_of(file) == [1, 2]
    assert "cannot train x" in directory_of(file).log.read_text()
    assert json.loads(directory_of(file).state.read_text())["status"] == "finished"


# Members -----------------------------------------------------------------------------------------


def test_members_answer_what_one_of_them_was_told_and_so_does_one_that_joins(
    members, postgres_database
):
    one, two = members("one"), members("two")
    one.ask()
    for loss in (0.3, 0.2):
        one.end(one.claim(), loss)
    one.trials.extend(lambda asked: with_value(asked, "lora.rank", "8"))
    two.look()
    assert two.trials.question.space == one.trials.question.space
    two.ask()
    one.look()
    ranks = [trial.point["lora.rank"] for trial in one.study.trials]
    assert ranks == ["1", "2", "4", "8"]
    assert [trial.point for trial in two.study.trials] == [t.point for t in one.study.trials]
    (axis,) = one.trials.question.space.axes
    assert isinstance(axis, ChoiceAxis)
    narrow = replace(one.trials.question, space=Space((replace(axis, values=("1", "2", "4")),)))
    joining = Leases(open_engine(postgres_database), narrow.name, 10.0, member="three")
    three = Study.open(
        narrow,
        postgres_database,
        eval_every_steps=2,
        total_steps=8,
        leases=joining,
        asks=False,
    )
    assert three.question.space == one.trials.question.space
    assert [trial.point for trial in three.trials] == [t.point for t in one.study.trials]
    three.close()


def test_an_instruction_reaches_members_whose_disk_is_another_once(members, tmp_path):
    one, two = members("one"), members("two")
    here, there = SweepDirectory(tmp_path / "here", "shared"), SweepDirectory(tmp_path, "shared")
    for directory in (here, there):
        directory.path.mkdir(parents=True)
    hears = {"one": Inbox(here, one.study, print), "two": Inbox(there, two.study, print)}
    told = Instruction(kind=InstructionKind.stop_run, run_id="a run that two trains")
    Instructions(here.instructions).append(told)
    assert hears["one"].hear() == [told]
    assert hears["two"].hear() == []
    two.look()
    assert hears["two"].hear() == [told]
    Instructions(there.instructions).append(told)  # on a disk that both see
    for name, member in (("one", one), ("two", two)):
        member.look()
        assert hears[name].hear() == []
