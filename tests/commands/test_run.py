"""`harness run` end to end on a tiny model: resume, signals, refusals, secrets, trackers, the terminal."""

import json
import os
import pty
import re
import signal
import struct
import termios
import threading
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from harness.records.record import RunStatus, read_metrics, read_record
from harness.tracking.wandb_file import read_wandb_run
from tests.commands.forked import Command, Done, real_harness
from tests.random_models import LLAMA, save_random_model

STEPS = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A directory with a tiny random model and a file of sums; each command works in one below it."""
    root = tmp_path_factory.mktemp("world")
    save_random_model(root / "tiny llama", "llama", **LLAMA)
    rows = [
        {"prompt": f"How much are {i} and {j}?", "response": f"{i} and {j} are {i + j}."}
        for i in range(3, 9)
        for j in range(10, 20)
    ]
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def request(world: Path, *overrides: str) -> list[str]:
    """Return the command line of a short run with dropout, micro-batches and evaluations in between."""
    return [
        "run",
        f"model={world / 'tiny llama'}",
        "data=pairs",
        f"data.path={world / 'sums.jsonl'}",
        *("data.validation_rows=8", "data.test_rows=8", "data.max_length=64"),
        *(f"optim.steps={STEPS}", "optim.batch_size=4", "optim.micro_batch_size=2"),
        *("lora.dropout=0.1", "eval.every_steps=4", "eval.generate_rows=4"),
        *("eval.max_new_tokens=4", "checkpoint.every_steps=1", "tracker=none"),
        f"paths.cache={world / 'cache'}",
        *overrides,
    ]


def run_directory(directory: Path) -> Path:
    """Return the one run under a command's directory."""
    (only,) = (directory / "out" / "runs").iterdir()
    return only


def num_rows(directory: Path) -> int:
    """Return how many steps the metrics of a run under `directory` tell of; 0 before there are any."""
    files = list((directory / "out" / "runs").glob("*/metrics.jsonl"))
    return len(read_metrics(files[0]).rows) if files else 0


def result(run: Path) -> tuple[bytes, object, object]:
    """Return what two runs of one request must have in common, bit for bit; times are each one's own."""
    record = read_record(run / "run.json")
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    rows = read_metrics(run / "metrics.jsonl").rows
    learned = [
        {k: v for k, v in row.items() if k == "step" or k.startswith(("train/", "eval/"))}
        for row in rows
    ]
    return adapter, learned, record.evals


@pytest.fixture(scope="module")
def undisturbed(world) -> tuple[Path, Done]:
    """A run of which nobody took notice, tracked by W&B offline."""
    directory = world / "undisturbed"
    done = Command(request(world, "tracker=wandb_offline"), directory).end()
    assert done.code == 0, done.err
    return run_directory(directory), done


def test_a_run_leaves_everything_that_the_design_draws(undisturbed):
    run, _ = undisturbed
    record = read_record(run / "run.json")
    assert record.status is RunStatus.completed
    assert record.run_id == run.name
    assert set(record.evals) == {"before", "after"}
    present = {path.name for path in run.iterdir()} - {".lock"}
    assert present >= {"run.json", "config.yaml", "metrics.jsonl", "adapter", "wandb"}
    assert not (run / "checkpoint").exists()
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl").rows] == list(
        range(1, STEPS + 1)
    )


def test_the_final_table_shows_before_after_cost_and_adapter_within_80_columns(undisturbed):
    run, done = undisturbed
    lines = done.out.splitlines()
    assert lines[0] == f"{run.name}: completed"
    assert max(len(line) for line in lines if "out/runs" not in line) <= 80
    record = read_record(run / "run.json")
    before, after = (record.evals[phase]["eval/loss"] for phase in ("before", "after"))
    assert re.search(
        rf"eval loss ↓ +{before.value:.4f} ± .* +{after.value:.4f} ± .* +8\b", done.out
    )
    params = record.metrics["adapter/trainable_params"]
    assert f"{params:,.0f}" in done.out
    assert re.search(r"step time +[\d.]+ ms", done.out)
    assert f"adapter  out/runs/{run.name}/adapter" in lines


def test_stderr_has_progress_in_plain_lines_and_nothing_of_the_libraries(undisturbed):
    run, done = undisturbed
    first, coverage, *steps = done.err.splitlines()
    assert first == f"{run.name}: loading"
    assert coverage == "of the blocks' weights 100.0% are stored as nf4, 100.0% adapted"
    step = r"step \d+/12  loss [\d.]+  [\d,]+ tokens/s  \d+ s left"
    evaluation = r"epoch [\d.]+  step \d+/12  train loss [\d.]+  eval loss [\d.]+"
    assert steps
    assert all(re.fullmatch(f"{step}|{evaluation}", line) for line in steps), done.err


def test_the_same_request_again_trains_nothing_and_prints_the_record_as_json(world, undisturbed):
    run, _ = undisturbed
    kept = [run / "run.json", run / "metrics.jsonl", *(run / "adapter").iterdir()]
    before = [path.stat().st_mtime_ns for path in kept]
    done = real_harness([*request(world), "--json"], world / "undisturbed")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((run / "run.json").read_text())
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_the_real_command_trains_to_the_same_bits_with_a_clean_stderr(world, undisturbed):
    """Imports and all."""
    directory = world / "real"
    done = real_harness([*request(world), "--json"], directory)
    assert done.code == 0, done.err
    assert json.loads(done.out)["status"] == "completed"
    assert all(
        re.match(r"(epoch \d.*)?step \d|of the blocks|.*: loading$", line)
        for line in done.err.splitlines()
    ), done.err
    assert result(run_directory(directory)) == result(undisturbed[0])
    assert not (run_directory(directory) / "wandb").exists()


@pytest.mark.slow  # two threads wait long for each other on a machine that is busy with other things
def test_threads_are_a_resource_and_not_part_of_the_run(world, undisturbed):
    done = Command(request(world, "resources.threads=2", "optim.steps=4"), world / "threads").end()
    assert done.code == 0, done.err
    told = read_metrics(run_directory(world / "threads") / "metrics.jsonl").rows
    reference = read_metrics(undisturbed[0] / "metrics.jsonl").rows[:4]
    assert [row["train/loss"] for row in told] == pytest.approx(
        [row["train/loss"] for row in reference], abs=1e-5
    )


def test_a_run_killed_at_several_moments_ends_bit_for_bit_like_an_undisturbed_one(
    world, undisturbed
):
    directory = world / "killed"
    for rows in (1, 4, 9):
        command = Command(request(world), directory)
        command.wait_until(lambda rows=rows: num_rows(directory) >= rows)
        command.send(signal.SIGKILL)
        assert command.end().code == -signal.SIGKILL
        assert read_record(run_directory(directory) / "run.json").status is RunStatus.running
    done = Command(request(world), directory).end()
    assert done.code == 0, done.err
    run = run_directory(directory)
    assert run.name == undisturbed[0].name
    assert result(run) == result(undisturbed[0])
    assert any(
        note.startswith("resumed after step") for note in read_record(run / "run.json").notes
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_polite_signal_checkpoints_and_the_same_command_resumes(world, undisturbed, number):
    directory = world / number.name
    mine = request(world, "tracker=wandb_offline", "checkpoint.every_steps=null")
    command = Command(mine, directory)
    command.wait_until(lambda: num_rows(directory) >= 3)
    command.send(number)
    done = command.end()
    run = run_directory(directory)
    record = read_record(run / "run.json")
    assert (done.code, record.status) == (130, RunStatus.interrupted), done.err
    assert f"interrupted: stopped by {number.name}; the same command" in done.err
    assert "Traceback" not in done.err
    assert list((run / "checkpoint").glob("step-*"))

    again = Command(mine, directory).end()
    assert again.code == 0, again.err
    assert result(run) == result(undisturbed[0])
    assert history(run) == read_metrics(run / "metrics.jsonl").rows


def history(run: Path) -> list[dict[str, Any]]:
    """Return what the offline W&B files of a run tell together."""
    told = read_wandb_run(run / "wandb")
    assert told.problems == []
    assert told.run_id == run.name
    return told.history


def test_wandb_and_metrics_tell_the_same_history_of_an_undisturbed_run(undisturbed):
    run, _ = undisturbed
    assert history(run) == read_metrics(run / "metrics.jsonl").rows


def test_a_second_process_on_the_same_run_is_refused_and_names_the_holder(world):
    directory = world / "second"
    mine = request(world, "optim.steps=2000")
    first = Command(mine, directory)
    first.wait_until(lambda: num_rows(directory) >= 1)
    second = real_harness([*mine, "--json"], directory)
    assert (second.code, second.out) == (2, "")
    assert f"pid {first.process.pid} on " in second.err
    assert "paths.out" in second.err
    first.send(signal.SIGINT)
    assert first.end().code == 130


def test_divergence_ends_with_1_and_a_record_and_is_not_trained_again(world):
    directory = world / "diverged"
    mine = request(world, "optim.lr=1e30", "optim.max_grad_norm=null", "eval=loss")
    mine = [argument for argument in mine if not argument.startswith(("eval.gen", "eval.max"))]
    done = Command(mine, directory).end()
    record = read_record(run_directory(directory) / "run.json")
    assert (done.code, record.status) == (1, RunStatus.diverged), done.err
    assert record.error is not None
    assert re.match(r"step \d+: loss (nan|inf)|step \d+: .*gradient norm (nan|inf)", record.error)
    assert f"harness: diverged: {record.error}\n" in done.err
    again = Command([*mine, "--json"], directory).end()
    assert (again.code, json.loads(again.out)["status"]) == (1, "diverged")
    assert "step 1/" not in again.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rank=4", ["cannot be loaded", "deserializing header"]),
        ("lora.rank=512", ["lora.rank=512", "32", "k_proj", "use at most 32"]),
        ("lora.target_modules=[q_prj]", ["'q_prj'", "near names: q_proj"]),
        ("data.max_length=100000", ["data.max_length=100000", "256 positions"]),
    ],
)
def test_rank_and_targets_are_refused_before_weights_are_read(world, override, words):
    """The weights cannot be read: whoever tries ends otherwise."""
    broken = world / "broken"
    if not broken.exists():
        save_random_model(broken, "llama", **LLAMA)
        (broken / "model.safetensors").write_bytes(b"no weights")
        rows = [{"prompt": f"{i} {'a' * 400}", "response": "b" * 400} for i in range(40)]
        (world / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "long.jsonl" if "max_length" in override else "sums.jsonl"
    mine = request(world, f"model={broken}", override, f"data.path={world / data}", "--json")
    done = Command(mine, world / "refused").end()
    assert (done.code, done.out) == (2, ""), done.err
    assert all(word in done.err for word in words), done.err
    assert "Traceback" not in done.err
    assert not (world / "refused" / "out" / "runs").exists()


def test_a_secret_reaches_no_file_of_the_run(world):
    in_environment, in_config = "s3cr3t-from-the-environment", "hf_" + "aB3dE5gH" * 4
    directory = world / "secret"
    mine = request(
        world,
        "tracker=wandb_offline",
        f"tracker.tags=[{in_config},{in_environment}]",
        "data.template=chatml",
        f"data.system='{in_config}'",
        "data.max_length=200",
        "optim.steps=4",
    )
    done = Command(mine, directory, environment={"MY_SERVICE_TOKEN": in_environment}).end()
    assert done.code == 0, done.err
    files = [path for path in run_directory(directory).rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert in_environment.encode() not in content, path
        assert in_config.encode() not in content, path
    assert b"[redacted]" in (run_directory(directory) / "config.yaml").read_bytes()


def test_a_terminal_shows_a_bar_with_loss_speed_and_time_left_and_no_plain_lines(world):
    master, slave = pty.openpty()
    ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(master, 65536):
                shown.append(chunk)
        except OSError:  # the last process that held the terminal has gone
            return

    reader = threading.Thread(target=read)
    reader.start()
    environment = {"TERM": "xterm-256color", "COLUMNS": "", "NO_COLOR": ""}
    command = Command(
        request(world, "optim.steps=60", "seed=7", "checkpoint.every_steps=null"),
        world / "terminal",
        environment=environment,
        terminal=os.ttyname(slave),
    )
    done = command.end()
    os.close(slave)
    reader.join(10)
    assert done.code == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(shown).decode())
    bars = [line for line in re.split(r"[\r\n]+", text) if "tokens/s" in line and "/60" in line]
    assert any(
        re.search(r"\d+/60 .*loss \d+\.\d+ +[\d,]+ tokens/s +\d+:\d\d", bar) for bar in bars
    ), bars
    assert max(map(len, bars)) <= 80
    assert "s left" not in text
    assert ": loading" not in text
    run = run_directory(world / "terminal")
    assert f"{run.name}: completed" in text
