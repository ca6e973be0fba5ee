"""Ranks of one run: the leader is the test itself, followers are forked with torch loaded."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from harness.config.resources import Shard
from harness.config.schema import ModelConfig, PathsConfig, QuantConfig, ResourcesConfig, RunConfig
from harness.engine.shared_base import SharedBase
from harness.parallel.group import join
from harness.parallel.leader import Leader
from harness.training.job import Job
from tests.commands.forked import warm_context
from tests.parallel.following import Harm, follow, opened
from tests.training.conftest import (  # noqa: F401  fixtures
    MakeJob,
    make_base,
    pretrained,
    quantized,
    sums,
)
from tests.training.conftest import make_job as make_quick_job  # noqa: F401

Lead = Callable[..., AbstractContextManager[Leader]]
Sharding = Callable[..., AbstractContextManager[tuple[Leader, SharedBase]]]


@pytest.fixture
def make_job(make_quick_job: MakeJob) -> MakeJob:  # noqa: F811
    """Return the training tests' function, for runs that learn more slowly.

    With their learning rate the sums are known after six steps. Ranks add in another order than one process
    does, and of a gradient that nears zero fewer and fewer digits agree.
    """

    def make(shared: SharedBase, run_id: str, **sections: Any) -> Job:
        optim = {"lr": 1e-3, **sections.pop("optim", {})}
        return make_quick_job(shared, run_id, optim=optim, **sections)

    return make


@pytest.fixture
def lead(
    pretrained: Path,  # noqa: F811
    quantized: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Lead:
    """Return a context manager: lead(size, harm=…) followers on the embedded model, and their leader."""

    @contextmanager
    def leading(
        size: int = 2,
        quant: QuantConfig | None = None,
        harm: Harm = Harm.none,
        config: RunConfig | None = None,
        exit_code: int = 0,
    ) -> Iterator[Leader]:
        config = config or RunConfig(
            model=ModelConfig(name=str(pretrained)),
            quant=quant or QuantConfig(),
            resources=ResourcesConfig(device="cpu", data_parallel=size),
            paths=PathsConfig(out=str(tmp_path), cache=str(quantized)),
        )
        environment = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(free_port()),
        }
        followers = [
            warm_context().Process(
                target=follow, args=(config, harm, {**environment, "RANK": str(rank)})
            )
            for rank in range(1, size)
        ]
        for follower in followers:
            follower.start()
        for name, value in {**environment, "RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        logs = [tmp_path / f"{rank}.log" for rank in range(size)]
        try:
            with join(config.resources) as group, Leader(group, logs) as leader:
                yield leader
            for follower in followers:
                follower.join(30)
                assert follower.exitcode == exit_code
        finally:
            for follower in followers:
                follower.kill()
            if dist.is_initialized():
                dist.destroy_process_group()

    return leading


def asked(model: Path, out: Path, cache: Path, quant: QuantConfig, size: int) -> RunConfig:
    """Return what a run on a base that so many processes share asks for."""
    return RunConfig(
        model=ModelConfig(name=str(model)),
        quant=quant,
        resources=ResourcesConfig(device="cpu", data_parallel=size, shard=Shard.fsdp),
        paths=PathsConfig(out=str(out), cache=str(cache)),
    )


@pytest.fixture
def sharding(pretrained: Path, quantized: Path, tmp_path: Path, lead: Lead) -> Sharding:  # noqa: F811
    """Return a context manager: sharding(quant, …) gives a leader and the base that its processes share."""

    @contextmanager
    def sharded(
        quant: QuantConfig,
        *,
        model: Path = pretrained,
        size: int = 2,
        harm: Harm = Harm.none,
        exit_code: int = 0,
    ) -> Iterator[tuple[Leader, SharedBase]]:
        config = asked(model, tmp_path, quantized, quant, size)
        with lead(size, harm=harm, config=config, exit_code=exit_code) as leader:
            yield leader, opened(config, shard=leader.shard)

    return sharded


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
