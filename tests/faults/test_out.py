"""All of out/ after a sweep: any of its files damaged, pickles in their places, words that would be code."""

import csv
import json
import pickle
import random
import re
import shutil
import socket
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from harness.cli.main import dispatch
from harness.launch.jobs import Submitted, job_lines, keep_jobs, logs_of, make_private
from harness.records.record import read_records
from harness.sweeping.state import SweepDirectory
from harness.tracking.wandb_file import read_wandb_run
from tests.faults.damage import damaged
from tests.faults.tally import TIMES
from tests.tracking.test_wandb_file import assert_is_part_of_the_truth, write_offline_run

STEPS = 60


def ends_in_words(capfd: pytest.CaptureFixture[str], words: list[str]) -> bool:
    """Whether a command ends well, or is refused in a sentence."""
    capfd.readouterr()
    code = dispatch(words)
    said = capfd.readouterr()
    assert code in (0, 2), said.err
    return "Traceback" not in said.err and (code == 0 or bool(said.err))


def reports_of(kind: str) -> list[list[str]]:
    """Return the reports that read a kind of file; they take a second each."""
    return [["report", "small"]] if kind in READ_BY_REPORTS else []


READ_BY_REPORTS = (
    *("runs/run.json", "runs/metrics.jsonl", "runs/answers.jsonl", "runs/config.yaml"),
    *("sweeps/state.json", "sweeps/sweep.yaml", "sweeps/study.db"),
)


def files_by_kind(out: Path) -> dict[str, list[Path]]:
    """Return all files of `paths.out`, those that are read in the same way together."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        if path.name not in (".lock", ".reserve"):
            place = path.relative_to(out).parts
            kinds.setdefault(f"{place[0]}/{path.name}", []).append(path)
    return kinds


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tries", [24 * TIMES])
def test_any_file_is_damaged_and_what_can_be_shown_is(trained, out, tries, tally, capfd):
    chance, kinds = random.Random(51), files_by_kind(out)
    assert len(kinds) > 12
    with tally("any file, then status and report") as row:
        for number in range(tries):
            kind = sorted(kinds)[number % len(kinds)]
            file = chance.choice(kinds[kind])
            sound = file.read_bytes()
            what, content = damaged(sound, chance)
            file.write_bytes(content)
            for words in (["status"], ["status", "small"], ["wandb"], *reports_of(kind)):
                row.check(
                    f"{kind} {what}, {words}",
                    lambda w=words: ends_in_words(capfd, [*w, f"paths.out={out}"]),
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sound)


def as_a_directory(file: Path) -> None:
    file.mkdir()
    (file / "x").write_bytes(b"x")


ELSE: dict[str, Callable[[Path], None]] = {
    "a directory": as_a_directory,
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to nothing": lambda file: file.symlink_to("/nowhere/at/all"),
    "a link to a device": lambda file: file.symlink_to("/dev/null"),
}


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_any_file_is_something_else(trained, out, tally, capfd):
    with tally("any file is no file") as row:
        for kind, files in files_by_kind(out).items():
            for number, (what, become) in enumerate(ELSE.items()):
                sound = files[0].read_bytes()
                files[0].unlink()
                become(files[0])
                shown = [] if number else reports_of(kind)
                for words in (["status"], ["status", "small"], ["wandb"], *shown):
                    row.check(
                        f"{kind} is {what}, {words}",
                        lambda w=words: ends_in_words(capfd, [*w, f"paths.out={out}"]),
                    )
                if files[0].is_dir() and not files[0].is_symlink():
                    shutil.rmtree(files[0])
                files[0].unlink(missing_ok=True)
                files[0].parent.mkdir(parents=True, exist_ok=True)
                files[0].write_bytes(sound)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tries", [7 * TIMES])
def test_any_file_is_damaged_and_the_same_command_invents_nothing(
    trained, out, tries, tally, capfd
):
    """Values that were changed into other possible ones are left out: nothing could tell them."""
    chance, kinds = random.Random(52), files_by_kind(trained[1])
    wanted = values(trained[1])
    with tally("any file, then the same command") as row:
        for number in range(tries):
            kind = sorted(kinds)[number % len(kinds)]
            shutil.rmtree(out)
            shutil.copytree(trained[1], out)
            file = out / chance.choice(kinds[kind]).relative_to(trained[1])
            what, content = "", b""
            while not what or what in ("a value changed", "a key missing"):
                what, content = damaged(file.read_bytes(), chance)
            file.write_bytes(content)
            words = ["sweep", str(trained[0]), f"paths.out={out}"]
            row.check(f"{kind} {what}", lambda words=words: ends_in_words(capfd, words))
            found = values(out)
            row.check(
                f"{kind} {what}, same",
                lambda f=found: all(f[r] == pytest.approx(wanted[r], abs=1e-6) for r in f),
            )


def values(out: Path) -> dict[str, dict[str, float]]:
    """Return what was measured after each run."""
    return {
        record.run_id: {
            name: result.value for name, result in record.evals.get("after", {}).items()
        }
        for record in read_records(out)[0]
    }


@pytest.fixture(scope="module")
def wandb_file(tmp_path_factory) -> Path:
    return write_offline_run(tmp_path_factory.mktemp("wandb"), STEPS)


@pytest.mark.faults
@pytest.mark.parametrize("tries", [300 * TIMES])
def test_a_file_of_wandb_gives_what_was_logged_or_nothing(wandb_file, tmp_path, tries, tally):
    chance, sound = random.Random(53), wandb_file.read_bytes()
    file = tmp_path / wandb_file.name

    def is_true() -> bool:
        back = read_wandb_run(tmp_path)
        assert_is_part_of_the_truth(back)
        return bool(back.problems) or len(back.history) == STEPS

    with tally(".wandb") as row:
        for number in range(tries):
            what, content = damaged(sound, chance)
            file.write_bytes(content)
            row.check(f"{number} {what}", is_true)
        for end in range(len(sound) - 1, 0, -101):
            file.write_bytes(sound[:end])
            row.check(f"cut at {end}", is_true)


# Pickles -----------------------------------------------------------------------------------------


class Touch:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_pickle_is_loaded_from_nowhere_in_out(trained, out, world, tmp_path, tally, capfd):
    mark = tmp_path / "mark"
    hostile = pickle.dumps(Touch(mark))
    pickle.loads(hostile)
    assert mark.exists(), "the pickle does nothing"
    mark.unlink()
    place = f"paths.out={out}"
    directory = SweepDirectory(out, "small")
    make_private(logs_of(out, "small"))
    log = str(logs_of(out, "small") / "1_0_log.out")
    here = socket.gethostname()
    job = Submitted(job_id="1", launcher="local", where=here, submitted_at="", log=log)
    keep_jobs(out, "small", [job])
    with tally("pickles in out/") as row:
        for kind, files in files_by_kind(out).items():
            if kind.startswith(("sweeps/workers", "runs/code.diff")):
                continue
            sound = [(file, file.read_bytes()) for file in files]
            for file, _ in sound:
                file.write_bytes(hostile)
            for words in (["status", "small"], ["wandb"], *reports_of(kind)):
                row.check(f"{kind}, {words}", lambda w=words: ends_in_words(capfd, [*w, place]))
            row.check(kind, lambda: not mark.exists())
            for file, content in sound:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        for name in ("1_0_result.pkl", "1_submitted.pkl"):
            (logs_of(out, "small") / name).write_bytes(hostile)
        row.check("results of jobs", lambda: bool(job_lines(directory)) and not mark.exists())
        mode = stat.S_IMODE(logs_of(out, "small").stat().st_mode)
        row.check("jobs/ is the user's alone", lambda: mode == 0o700)
        for run in out.glob("runs/*"):  # as if the run had been cut, all it goes on from hostile
            (run / "run.json").unlink()
            for file in [*run.glob("checkpoint/*/*"), *run.glob("adapter/*")]:
                file.write_bytes(hostile)
        for file in out.glob("cache/**/*"):
            if file.is_file():
                file.write_bytes(hostile)
        row.check(
            "checkpoints and caches",
            lambda: dispatch(["sweep", str(trained[0]), place]) == 0 and not mark.exists(),
        )
        model = shutil.copytree(world / "tiny", tmp_path / "model")
        for weights in model.glob("*.safetensors"):
            weights.unlink()
        (model / "pytorch_model.bin").write_bytes(hostile)
        row.check(
            "pytorch_model.bin",
            lambda: dispatch(["run", f"model={model}", place]) == 2 and not mark.exists(),
        )


# Words that would be code ------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(1)</script>",
    "javascript:alert(1)",
    '=HYPERLINK("http://x","y")',
    "+1+cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "-2+3",
    "\\input{/etc/passwd}",
    "\\write18{touch pwned}",
    "$(touch pwned) `touch pwned`; touch pwned",
    "a | b | c",
    "[x](javascript:alert(1))",
    "%s%n {0} ${seed}",
    "\u202egnp.exe",
    "[/red][link=http://x]",
)


class Tags(HTMLParser):
    """What a page would run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts, self.handlers, self.links = 0, list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.links += [v or "" for name, v in attrs if name in ("href", "src")]


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tries", [3 * TIMES])
def test_words_of_users_are_text_in_every_language(trained, out, tries, tally, capfd, monkeypatch):
    monkeypatch.chdir(out.parent)
    chance, sweep = random.Random(54), out / "sweeps/small"
    state_sound = (sweep / "state.json").read_text()
    asked_sound = (sweep / "sweep.yaml").read_text()
    records = {file: file.read_text() for file in out.glob("runs/*/run.json")}
    with tally("injection") as row:
        for number in range(tries):
            words = chance.sample(HOSTILE, 6)
            state, asked = json.loads(state_sound), yaml.safe_load(asked_sound)
            state |= {"question": words[0], "expect": words[1]}
            for trial in state["trials"]:
                trial["point"] = {"data.system": words[2], "lora.rank": words[3]}
            asked |= {"question": words[0], "expect": words[1]}
            (sweep / "state.json").write_text(json.dumps(state))
            (sweep / "sweep.yaml").write_text(yaml.safe_dump(asked))
            for file, sound in records.items():
                tree = json.loads(sound)
                tree["config"]["model"]["name"] = words[2]
                tree["config"]["data"]["path"] = words[3]
                tree["notes"], tree["error"] = [words[4]], words[5]
                tree["provenance"]["host"] = words[4]
                file.write_text(json.dumps(tree))
            done = ends_in_words(capfd, ["report", "small", f"paths.out={out}"])
            row.check(f"{number} report", lambda done=done: done)
            page = Tags((sweep / "report/index.html").read_text())
            row.check(f"{number} scripts {words}", lambda page=page: page.scripts <= 1)
            row.check(f"{number} handlers {words}", lambda page=page: not page.handlers)
            row.check(
                f"{number} links {words}",
                lambda page=page: not any("javascript:" in link for link in page.links),
            )
            for file in sorted((sweep / "report").rglob("*")):
                if file.suffix == ".csv":
                    cells = [c for line in csv.reader(file.read_text().splitlines()) for c in line]
                    row.check(
                        f"{number} {file.name}", lambda cells=cells: not any(map(_runs, cells))
                    )
                elif file.suffix == ".tex":
                    text = file.read_text()
                    row.check(
                        f"{number} {file.name}",
                        lambda t=text: not re.search(r"\\(input|write)\b", t),
                    )
                elif file.suffix == ".md":
                    text = file.read_text()
                    row.check(f"{number} {file.name}", lambda t=text: "<script" not in t)
            for words in (["status", "small"], ["wandb"]):
                row.check(
                    f"{number} {words}",
                    lambda w=words: ends_in_words(capfd, [*w, f"paths.out={out}"]),
                )
        row.check("nothing was run", lambda: not list(out.parent.rglob("pwned")))


def _runs(cell: str) -> bool:
    """Whether a spreadsheet takes a cell for a formula; a negative number is none."""
    return cell.startswith(("=", "+", "@", "-", "\t", "\r")) and not re.fullmatch(
        r"[-+]?[\d.,]+(e[-+]?\d+)?( .*)?|-", cell
    )
