"""Which devices get a worker, and what it is pinned to."""

import pytest

from harness.config.devices import WORKERS_VARIABLE
from harness.errors import RequestError
from harness.sweeping import pool
from harness.sweeping.pool import devices_for


@pytest.fixture
def visible(monkeypatch):
    def show(count: int, mask: str | None = None) -> None:
        monkeypatch.setattr(pool, "visible_cuda_devices", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if mask is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)

    return show


def one() -> int:
    return 1


def masks(wanted) -> list[str]:
    return [device.environment["CUDA_VISIBLE_DEVICES"] for device in devices_for(wanted, one)]


def test_auto_is_a_worker_per_visible_gpu_each_with_its_own_mask(visible):
    visible(3)
    assert masks("auto") == ["0", "1", "2"]
    assert masks([2, 0]) == ["2", "0"]


def test_two_workers_share_a_gpu_only_where_it_is_asked_for_and_know_of_each_other(visible):
    visible(2)
    devices = devices_for([0, 0, 1], one)
    assert [device.name for device in devices] == ["cuda:0 (1 of 2)", "cuda:0 (2 of 2)", "cuda:1"]
    assert [device.environment["CUDA_VISIBLE_DEVICES"] for device in devices] == ["0", "0", "1"]
    assert [device.environment.get(WORKERS_VARIABLE) for device in devices] == ["2", "2", None]


def test_a_mask_that_is_there_is_kept_within(visible):
    visible(2, mask="5,GPU-abc")
    assert masks("auto") == ["5", "GPU-abc"]
    assert masks([1]) == ["GPU-abc"]


def test_without_a_gpu_auto_is_as_many_workers_as_the_cpu_should_have(visible, monkeypatch):
    visible(0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    (device,) = devices_for("auto", one)
    assert device.name == "cpu"
    assert device.environment == {"CUDA_VISIBLE_DEVICES": ""}
    devices = devices_for("auto", lambda: 4)
    assert [device.name for device in devices] == ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]
    assert {device.environment["OMP_NUM_THREADS"] for device in devices} == {"2"}


def test_a_gpu_is_taken_before_the_cpu_which_is_one_worker_when_asked_for(visible):
    visible(1)
    assert [device.name for device in devices_for("auto", lambda: 4)] == ["cuda:0"]
    assert [device.name for device in devices_for("cpu", lambda: 4)] == ["cpu"]


@pytest.mark.parametrize(
    ("given", "threads"), [(None, "4"), ("1", "1"), ("3,2", "3"), ("64", "4"), ("all", "4")]
)
def test_workers_that_share_a_cpu_share_its_cores_and_know_of_each_other(
    visible, monkeypatch, given, threads
):
    visible(0)
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    devices = devices_for("cpu:2", one)
    assert [device.name for device in devices] == ["cpu:0", "cpu:1"]
    for device in devices:
        assert device.environment["OMP_NUM_THREADS"] == threads
        assert device.environment[WORKERS_VARIABLE] == "2"


def test_a_device_that_is_not_there_is_refused_with_what_is(visible):
    visible(2)
    with pytest.raises(RequestError, match="shows 2 CUDA devices; give indices below 2"):
        devices_for([0, 2], one)
