"""How many workers a machine without a GPU gets: for small bases one on each core, as far as they go."""

from collections import namedtuple
from collections.abc import Callable

import pytest

from harness.config import devices
from harness.config.devices import usable_cores
from harness.config.schema import ModelConfig, RunConfig
from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.sweeping import pool
from harness.sweeping.pool import SMALL_BYTES, WORKER_BYTES, workers_on_cpu

Memory = namedtuple("Memory", "available")


@pytest.fixture
def machine(monkeypatch) -> Callable[..., None]:
    """Pretend to be on a machine with so much."""

    def have(*, usable: int, workers_in_memory: int = 100) -> None:
        available = Memory(workers_in_memory * WORKER_BYTES)
        monkeypatch.setattr(pool.psutil, "virtual_memory", lambda: available)
        monkeypatch.setattr(pool, "usable_cores", lambda: usable)

    return have


@pytest.fixture
def configs(ask) -> list[RunConfig]:
    """The configurations of a question about a tiny model."""
    return [config for _, config in check_space(load_question(str(ask()), []))]


def test_a_small_base_gets_a_worker_on_each_core(machine, configs):
    machine(usable=6)
    assert workers_on_cpu(configs, 20) == 6


def test_no_more_than_there_are_trials_or_memory_for(machine, configs):
    machine(usable=6)
    assert workers_on_cpu(configs, 4) == 4
    machine(usable=6, workers_in_memory=3)
    assert workers_on_cpu(configs, 20) == 3
    machine(usable=6, workers_in_memory=0)
    assert workers_on_cpu(configs, 20) == 1


def test_one_worker_has_all_cores_where_a_base_is_large(machine, configs, tmp_path, monkeypatch):
    machine(usable=6)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(SMALL_BYTES + 1)
    large = ModelConfig(name=str(tmp_path))
    monkeypatch.setattr(configs[-1], "model", large, raising=False)
    assert workers_on_cpu(configs, 20) == 1


@pytest.mark.parametrize(
    ("threads", "physical", "quota", "found"),
    [
        (16, 8, float("inf"), 8),
        (2, 8, float("inf"), 2),
        (16, None, float("inf"), 16),
        (16, 8, 2.5, 2),
        (16, 8, 0.5, 1),
    ],
)
@pytest.mark.parametrize("of_one_process", [None, "1", "3"])
def test_usable_cores_are_those_that_are_granted_whatever_one_process_may_use(
    monkeypatch, threads, physical, quota, found, of_one_process
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if of_one_process is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", of_one_process)
    monkeypatch.setattr(devices, "usable_threads", lambda: threads)
    monkeypatch.setattr(devices, "physical_cores", lambda: physical)
    monkeypatch.setattr(devices, "_quota", lambda: quota)
    assert usable_cores() == found
