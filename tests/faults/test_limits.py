"""Disks that are full, read-only or gone, memory that is refused: sentences, and the same command goes on."""

import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml

from harness.cli.boundary import exit_code_of
from harness.errors import says_out_of_memory
from harness.records.record import RunStatus, read_records
from tests.faults.commands import ends_in_words, fresh_harness, harness

STEPS = 40
MIB = 1024 * 1024
ENDED = {RunStatus.completed, RunStatus.interrupted}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk of its own with the given options, or change those of the one that is mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        words = ["mount", "-t", "tmpfs", "-o", f"{'remount,' if mounted else ''}{options}"]
        done = subprocess.run([*words, "none", str(place)], capture_output=True, text=True)
        if done.returncode != 0 and not mounted:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_disk_that_is_full_ends_runs_as_interrupted_and_they_go_on(
    ask, small_disk, tmp_path, tally
):
    chance = random.Random(41)
    with tally("small disk (tmpfs)") as row:
        for number in range(3):
            size = chance.choice((64, 300, 700, 1000, 1300, 1700, 2500))
            disk = small_disk(f"size={size}k,mode=755")
            out = disk / f"out{number}"
            file = ask(
                base=(f"optim.steps={STEPS}", f"paths.out={out}", "checkpoint.every_steps=5"),
                resources={"devices": "cpu"},
            )
            what = f"{size} KiB"
            done = harness(["sweep", str(file)])
            row.check(what, lambda done=done: ends_in_words(done, (0, 1, 2)))
            found = {record.status for record in read_records(out)[0]}
            row.check(f"{what}: {found}", lambda found=found: found <= ENDED)
            for words in (["status"], ["status", "small"], ["report", "small"], ["report"]):
                said = harness([*words, f"paths.out={out}"])
                row.check(f"{what}, {words}", lambda s=said: ends_in_words(s, (0, 1, 2)))
            row.check(f"{what}, no half file", lambda out=out: not list(out.rglob(".*.json.*")))
            small_disk("size=200m")
            again = harness(["sweep", str(file)])
            row.check(f"{what}, again", lambda again=again: ends_in_words(again, (0,)))
            done = {record.status for record in read_records(out)[0]}
            row.check(f"{what}, completed", lambda done=done: done == {RunStatus.completed})
            shutil.rmtree(out)  # a disk cannot become smaller than what lies on it


def base_of(file: Path) -> list[str]:
    """Return the overrides of every run of a question."""
    return yaml.safe_load(file.read_text())["base"]


@pytest.mark.faults
def test_a_disk_that_is_read_only_is_a_sentence(ask, trained, small_disk, tmp_path, tally):
    disk = small_disk("size=50m,mode=755")
    subprocess.run(["cp", "-a", str(trained[1]), str(disk / "out")], check=True)
    file = ask(base=(f"paths.out={disk / 'out'}",))
    small_disk("ro")
    place = f"paths.out={disk / 'out'}"
    with tally("read-only disk") as row:
        for words, codes in (
            (["status", place], (0,)),
            (["status", "small", place], (0,)),
            (["sweep", str(trained[0]), place], (2,)),
            (["sweep", str(file), "name=other"], (2,)),
            (["sweep", str(file), "name=other", "--dry-run"], (0,)),
            (["run", place], (2,)),
            (["report", "small", place], (2,)),
            (["report", place], (2,)),
            (["plan", place], (0,)),
            (["plan", "small", place], (0,)),
            (["plan", *base_of(trained[0]), place], (0,)),  # a run of the sweep, which was measured
            (["data", *base_of(trained[0]), place], (0,)),
        ):
            done = harness(words)
            row.check(" ".join(words[:2]), lambda d=done, c=codes: ends_in_words(d, c))


@pytest.mark.faults
def test_an_export_to_a_full_disk_is_a_sentence(trained, small_disk, tally):
    disk, place = small_disk("size=8k,mode=755"), f"paths.out={trained[1]}"
    with tally("exports to a full disk") as row:
        for form in ("adapter", "merged", "gguf"):
            words = ["export", "small", "--to", form, "--out", str(disk / form), place]
            done = harness(words)
            row.check(form, lambda done=done: ends_in_words(done, (1,)))
        row.check("nothing is left", lambda: not list(disk.iterdir()))


REFUSALS = {
    "oneDNN": RuntimeError("could not create a primitive"),
    "oneDNN, in a descriptor": RuntimeError(
        "could not create a primitive descriptor for a matmul primitive"
    ),
    "oneDNN, memory": RuntimeError("could not create a memory object"),
    "cuBLAS": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "CUDA": RuntimeError("CUDA error: out of memory"),
    "HIP": RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    "bitsandbytes": RuntimeError(
        "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp"
    ),
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "safetensors": RuntimeError(
        "unable to mmap 4294967296 bytes from file: Cannot allocate memory (12)"
    ),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "the system": OSError(12, "Cannot allocate memory"),
}
OTHERS = (
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
    RuntimeError("element 0 of tensors does not require grad"),
    ValueError("out of memory"),
    OSError(28, "No space left on device"),
)


def test_every_allocators_refusal_is_out_of_memory_and_nothing_else_is(tally):
    from harness.measure.memory import is_out_of_memory

    with tally("allocators' refusals") as row:
        for who, error in REFUSALS.items():
            row.check(who, lambda error=error: is_out_of_memory(error))
        for error in OTHERS:
            row.check(str(error), lambda error=error: not is_out_of_memory(error))
        row.check("in a message", lambda: says_out_of_memory("CUBLAS_STATUS_ALLOC_FAILED"))


LACKS: tuple[Exception, ...] = (
    *(error for error in REFUSALS.values() if isinstance(error, Exception)),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    RuntimeError("can't start new thread"),
)
REFUSED_BY_DISKS = (
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ValueError("(sqlite3.OperationalError) database or disk is full"),
    OSError("2048 requested and 1776 written"),
)
OURS: tuple[Exception, ...] = (
    *(error for error in OTHERS if type(error) is RuntimeError),
    ImportError("/x.so: failed to map segment from shared object: Operation not permitted"),
    KeyError("x"),
)


def test_a_command_that_lacks_memory_says_so_and_faults_of_ours_are_named(tally, capsys):
    def ends(error: Exception) -> int:
        def fail() -> int:
            raise error

        return exit_code_of(fail)

    with tally("memory that a command lacks") as row:
        for error in LACKS:
            row.check(repr(error), lambda error=error: ends(error) == 1)
            said = capsys.readouterr().err
            row.check(f"{error!r}, said", lambda said=said: "memory" in said)
        for error in REFUSED_BY_DISKS:
            row.check(repr(error), lambda error=error: ends(error) == 1)
        for error in OURS:
            row.check(repr(error), lambda error=error: ends(error) == 70)


def test_a_library_that_cannot_be_imported_is_no_fault_of_ours(tally, tmp_path, capsys):
    """As huggingface_hub raises ValueError where a variable of the environment is no number."""
    module = tmp_path / "site-packages" / "broken.py"
    module.parent.mkdir()
    module.write_text("int('abc')\n")

    def fail() -> int:
        spec = spec_from_file_location("broken", module)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(module_from_spec(spec))
        return 0

    with tally("libraries that cannot be imported") as row:
        row.check("exit code", lambda: exit_code_of(fail) == 1)
        row.check("named", lambda: "broken cannot be loaded here" in capsys.readouterr().err)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_memory_that_is_refused_is_a_result_after_which_the_process_ends(world, tmp_path, tally):
    data = [f"model={world / 'tiny'}", "data=pairs", f"data.path={world / 'sums.jsonl'}"]
    sizes = ["data.validation_rows=8", "data.test_rows=8", "data.max_length=64", "eval=loss"]
    with tally("memory limits (RLIMIT_AS)") as row:
        for mebibytes in (400, 900, 1500, 2000, 2400, 2800):
            out = tmp_path / str(mebibytes)
            batch = ["optim.steps=2", "optim.batch_size=20000", "tracker=none"]
            done = fresh_harness(
                ["run", *data, *sizes, *batch, f"paths.out={out}"],
                limit=lambda size=mebibytes: resource.setrlimit(
                    resource.RLIMIT_AS, (size * MIB, size * MIB)
                ),
            )
            what = f"{mebibytes} MiB: exit {done.code}: {done.err[-200:]}"
            row.check(what, lambda done=done: ends_in_words(done, (0, 1)))
            found = {record.status for record in read_records(out)[0]}
            row.check(
                f"{mebibytes} MiB: {found}",
                lambda found=found: found <= {RunStatus.completed, RunStatus.out_of_memory},
            )
