"""Shared fixtures: the really pretrained model of the package, and nothing from outside of the repository."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest's workers are the parallelism

# Tests save and sync by the thousand; in memory, where there is plenty, no disk is waited for.
if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first test imports a library that reads it
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["WANDB_SILENT"] = "true"

import pytest
from hypothesis import HealthCheck, Phase, settings

import harness

# The same examples every time, and no example is timed.
settings.register_profile(
    "suite",
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# Where nobody reads what fails, no smaller example is looked for, which takes many times as long.
settings.register_profile(
    "judges", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("suite")

pytest_plugins = ["tests.postgres"]


LONG = (
    *("launch/test_slurm.py", "sweeping/test_member.py", "sweeping/test_sweep.py"),
    *("commands/test_run.py", "parallel/test_sharding.py", "parallel/test_command.py"),
    *("engine/test_backends.py", "study/test_study.py", "training/test_captured.py"),
    *("training/test_same_as_alone.py", "analysis/test_report.py", "plan/test_passes.py"),
    *("test_wheel.py", "test_examples.py", "sweeping/test_crash.py", "parallel/test_ranks.py"),
    *("sweeping/test_probes.py", "sweeping/test_tenancy_faults.py", "sweeping/test_artifacts.py"),
    *("test_api.py", "training/test_session.py", "plan/test_captured.py"),
)
"""Files that take long, the longest first, so that no worker is left with one in the end."""
ROOMS = ("sweeping", "parallel", "training", "launch", "commands", "analysis", "tracking", "faults")
"""Then come rooms that take long."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest's workers share one fork server, which loads while they collect."""
    if getattr(config.option, "numprocesses", None) and not config.option.collectonly:
        from tests.commands.forked import start_server

        start_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by how long they take; a file stays with one worker, which shares what it builds."""
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> tuple[int, int]:
        name = item.path.relative_to(here).as_posix() if item.path.is_relative_to(here) else ""
        room = name.partition("/")[0]
        return (
            LONG.index(name) if name in LONG else len(LONG),
            ROOMS.index(room) if room in ROOMS else len(ROOMS),
        )

    items.sort(key=rank)


@pytest.fixture(scope="session")
def pretrained() -> Path:
    """The embedded model: a really pretrained Llama of 1,312,384 parameters."""
    return Path(harness.__file__).parent / "embedded" / "model"


@pytest.fixture(scope="session")
def served_workers() -> Iterator[None]:
    """Let sweeps in this process have workers that are forked with their libraries loaded."""
    from harness.sweeping import pool
    from tests.commands.forked import ServedWorker, starting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "subprocess", starting(ServedWorker))
        yield


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes rows as a .jsonl file and returns its path."""

    def write(rows: list[object], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
