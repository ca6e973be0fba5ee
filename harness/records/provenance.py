"""Where a result came from: code, versions, machine, command, and what it was trained on.

Must not import torch, transformers or wandb; versions come from the installed packages' metadata.
Everything but the command is read once per process: the code that runs is the code that was imported.
"""

import functools
import os
import platform
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pynvml

from harness.config.devices import physical_cores, usable_threads
from harness.records.redact import redact, redact_tree
from harness.records.run_directory import write_text

PACKAGES = (
    "qlora-harness",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "hydra-core",
    "optuna",
    "datasets",
    "evaluate",
    "wandb",
)

_DIFF_BYTES = 1 << 20  # a diff beyond this is data, not code
_MAX_UNTRACKED = 200  # names listed
_GIT_SECONDS = 5.0
_NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    """The checkout that the harness was imported from."""

    commit: str | None
    """Commit of the checkout; None before the first one."""
    dirty: bool
    """Whether tracked files differ from the commit."""
    untracked: list[str]
    """Names of files that git neither tracks nor ignores, the first 200; their content is not kept."""
    num_untracked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of the host, used or not."""

    name: str
    memory_bytes: int
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What `run.json` says about where a result came from."""

    git: GitState | None
    """State of the checkout; None where the harness was not imported from one of its own."""
    packages: dict[str, str | None]
    """Version by name; None: not installed."""
    python: str
    host: str
    os: str
    cpu: str
    cpu_cores: int | None
    """Physical cores of the host."""
    cpu_threads: int
    """Logical cores that this process may use."""
    ram_bytes: int
    gpus: list[Gpu] | None
    """Empty without a driver; None where the driver does not answer."""
    command: str
    """The command line as a shell would take it, without secrets."""
    model_fingerprint: str | None
    data_fingerprint: str | None

    def as_tree(self) -> dict[str, Any]:
        """Return it as `Record.provenance` holds it."""
        return redact_tree(asdict(self))


def collect_provenance(
    *,
    model_fingerprint: str | None = None,
    data_fingerprint: str | None = None,
    arguments: Sequence[str] | None = None,
) -> Provenance:
    """Describe this process; `arguments` is its command line, `sys.argv` unless given."""
    command = shlex.join(_command_line() if arguments is None else arguments)
    return Provenance(
        git=git_state(_checkout()),
        packages=_package_versions(),
        python=platform.python_version(),
        host=socket.gethostname(),
        os=platform.platform(),
        cpu=cpu_model(),
        cpu_cores=physical_cores(),
        cpu_threads=usable_threads(),
        ram_bytes=_ram_bytes(),
        gpus=_gpus(),
        command=redact(command),
        model_fingerprint=model_fingerprint,
        data_fingerprint=data_fingerprint,
    )


def _command_line() -> list[str]:
    """Return the command line as it was typed: `python -m MODULE` where a module was run."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or spec.name == "__main__":
        return list(sys.argv)
    return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


def write_code_diff(path: Path) -> None:
    """Write how the code differs from its commit, without secrets; no file where it does not."""
    diff = code_diff(_checkout())
    if diff:
        write_text(path, diff)


@functools.cache
def _checkout() -> Path | None:
    """Return the root of the harness's own checkout, None where the package is installed elsewhere.

    A package inside some other project's repository (its .venv, say) does not count.
    """
    parent = Path(__file__).resolve().parents[2]
    top = _git(parent, "rev-parse", "--show-toplevel")
    return parent if top is not None and Path(top.strip()).resolve() == parent else None


@functools.cache
def git_state(checkout: Path | None) -> GitState | None:
    """Return commit, dirty flag and untracked files of a checkout, None if git cannot tell."""
    if checkout is None:
        return None
    status = _git(checkout, "status", "--porcelain=v2", "--branch", "-z", "--no-renames")
    if status is None:
        return None
    entries = [entry for entry in status.split("\0") if entry]
    commit = next(entry[13:] for entry in entries if entry.startswith("# branch.oid "))
    untracked = [entry[2:] for entry in entries if entry.startswith("? ")]
    return GitState(
        commit=None if commit == "(initial)" else commit,
        dirty=any(not entry.startswith(("# ", "? ")) for entry in entries),
        untracked=untracked[:_MAX_UNTRACKED],
        num_untracked=len(untracked),
    )


@functools.cache
def code_diff(checkout: Path | None) -> str:
    """Return `git diff` of a checkout against its commit, redacted, cut after 1 MiB; "" if there is none."""
    state = git_state(checkout)
    if checkout is None or state is None or state.commit is None or not state.dirty:
        return ""
    plain = ("--no-color", "--no-ext-diff", "--no-textconv")
    diff = _git(checkout, "diff", *plain, "HEAD", limit=_DIFF_BYTES)
    if diff is None:
        return "[git diff failed or took too long]\n"
    if len(diff.encode()) < _DIFF_BYTES:
        return redact(diff)
    whole_lines = diff[: diff.rfind("\n") + 1]  # half a secret would not be recognised
    return redact(whole_lines) + f"[cut after {_DIFF_BYTES} bytes]\n"


def _git(directory: Path, *arguments: str, limit: int = -1) -> str | None:
    """Return the first `limit` bytes that git prints (-1: all), None if it is absent, fails or is slow."""
    command = ["git", "-C", str(directory), *arguments]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    with tempfile.TemporaryFile() as output:  # a diff of tracked data can exceed memory
        try:
            subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                timeout=_GIT_SECONDS,
                env=environment,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        output.seek(0)
        return output.read(limit).decode(errors="replace")


@functools.cache
def _package_versions() -> dict[str, str | None]:
    return {name: _package_version(name) for name in PACKAGES}


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


@functools.cache
def _ram_bytes() -> int:
    return psutil.virtual_memory().total


@functools.cache
def _gpus() -> list[Gpu] | None:
    """Read the GPUs by NVIDIA's management library, which needs no CUDA context."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [] if error.value in _NO_DRIVER else None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        count = pynvml.nvmlDeviceGetCount()
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        driver=pynvml.nvmlSystemGetDriverVersion(),
    )
