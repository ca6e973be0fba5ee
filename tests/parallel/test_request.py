"""`resources.data_parallel`: what is refused before anything starts, and that it is not part of the run."""

from pathlib import Path

import pytest

from harness.config.compose import compose_run
from harness.config.devices import threads_per_process
from harness.config.schema import ResourcesConfig
from harness.config.validate import validate
from harness.errors import RequestError
from harness.request import make_request


@pytest.mark.parametrize(
    ("overrides", "visible", "words"),
    [
        (["resources.data_parallel=0"], "", ["must be at least 1"]),
        (
            ["resources.data_parallel=4", "optim.batch_size=6"],
            "",
            ["optim.batch_size=6 must be a multiple", "1, 2, 3, 6", "4, 8"],
        ),
        (
            ["resources.data_parallel=2", "optim.batch_size=6", "optim.micro_batch_size=3"],
            "",
            ["optim.micro_batch_size=3 must be a multiple", "1, 3"],
        ),
        (
            ["resources.data_parallel=2", "resources.device=cuda:1"],
            "0,1",
            ["names one GPU", "resources.device=cuda", "CUDA_VISIBLE_DEVICES"],
        ),
        (
            ["resources.shard=fsdp"],
            "",
            ["resources.data_parallel=1 is one", "data_parallel=2 or more"],
        ),
        (
            ["resources.shard=fsdp", "resources.data_parallel=2", "lora.init=olora"],
            "",
            ["lora.init=olora rewrites the base", "lora.init=default", "resources.shard=none"],
        ),
        (["resources.data_parallel=2"], "0", ["1 is visible", "use at most 1", "device=cpu"]),
        (["resources.data_parallel=4", "resources.device=cuda"], "0,1", ["2 are visible"]),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_would_work(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], visible: str, words: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(RequestError) as refused:
        validate(compose_run(overrides))
    assert len(str(refused.value).splitlines()) == 1
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("overrides", "visible"),
    [
        (["resources.data_parallel=2"], ""),
        (["resources.data_parallel=2", "resources.shard=fsdp"], ""),
        (["resources.data_parallel=2"], "0,1"),
        (["resources.data_parallel=4", "resources.device=cpu"], "0,1"),
    ],
)
def test_what_can_be_shared_is_not(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    validate(compose_run(overrides))


def test_how_many_processes_train_a_run_and_hold_its_base_is_not_part_of_it(tmp_path: Path) -> None:
    out = [f"paths.out='{tmp_path}'", "resources.device=cpu"]
    two = [*out, "resources.data_parallel=2"]
    asked = (out, two, [*two, "resources.shard=fsdp"])
    first, *others = (make_request(compose_run(overrides)).identity for overrides in asked)
    assert all(other == first for other in others)


def test_the_processes_of_a_run_share_its_threads() -> None:
    assert threads_per_process(ResourcesConfig(threads=8, data_parallel=4)) == 2
    assert threads_per_process(ResourcesConfig(threads=1, data_parallel=4)) == 1
    assert threads_per_process(ResourcesConfig(data_parallel=2), 16) == 8
