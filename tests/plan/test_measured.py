"""Measured costs: which record on disk stands for a configuration, and which does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config.compose import compose_run, config_tree
from harness.config.schema import RunConfig
from harness.errors import RequestError, RunFailed
from harness.plan.costs import CostGroup
from harness.plan.measured import find_measured
from harness.plan.probe import probe_config
from harness.records.record import MeasuredIn, Record, RunStatus, write_record
from harness.request import make_request

MEASURED = {"throughput/step_ms": 250.0, "memory/peak_bytes": 7.0}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return compose_run(["data=rule", "optim.steps=3", "tracker=none", f"paths.out={tmp_path}"])


def keep(config: RunConfig, *, config_in_record: Any = None, **fields: Any) -> None:
    """Write the record of a run of this configuration."""
    request = make_request(config, writes=False)
    request.directory.path.mkdir(parents=True)
    values = {"status": RunStatus.completed, "metrics": MEASURED} | fields
    tree = config_in_record or config_tree(config)
    write_record(
        request.directory.record, Record(run_id=request.identity.run_id, config=tree, **values)
    )


def found(*configs: RunConfig, probe: bool = False, **fields: Any) -> CostGroup:
    group = CostGroup(configs=list(configs), points=[{}] * len(configs), **fields)
    find_measured([group], probe=probe)
    return group


def test_a_probe_on_disk_stands_for_its_configuration(config: RunConfig) -> None:
    assert found(config).measured == {}, "nothing has run here"
    keep(probe_config(config), measured_in=MeasuredIn.probe)
    group = found(config)
    assert group.measured == MEASURED
    assert group.step_seconds == 0.25
    assert found(config, step_seconds=9.0).step_seconds == 9.0, "what is stated stays"
    refused = found(config, refusal="does not fit the model")
    assert (refused.measured, refused.step_seconds) == ({}, None)


def test_a_probe_without_a_step_says_what_it_has(config: RunConfig) -> None:
    keep(
        probe_config(config),
        measured_in=MeasuredIn.probe,
        status=RunStatus.out_of_memory,
        metrics={"memory/peak_bytes": 5.0},
    )
    group = found(config)
    assert (group.measured, group.step_seconds) == ({"memory/peak_bytes": 5.0}, None)


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, True),
        ({"measured_in": MeasuredIn.cohort}, False),
        ({"status": RunStatus.running}, False),
        ({"status": RunStatus.failed}, False),
        ({"status": RunStatus.out_of_memory}, True),
    ],
)
def test_a_run_alone_that_has_ended_stands_for_its_group(
    config: RunConfig, fields: dict[str, Any], counts: bool
) -> None:
    other = replace(config, seed=1)
    keep(other, **fields)
    assert found(config, other).measured == (MEASURED if counts else {})


@pytest.mark.parametrize(
    ("resources", "counts"), [({"shard": "fsdp"}, False), ({"shard": "none"}, True), ({}, True)]
)
def test_a_run_that_shared_its_base_with_other_processes_does_not(
    config: RunConfig, resources: dict[str, str], counts: bool
) -> None:
    keep(config, config_in_record={**config_tree(config), "resources": resources})
    assert found(config).measured == (MEASURED if counts else {})


def test_a_divided_base_is_not_probed(config: RunConfig) -> None:
    divided = compose_run(
        [
            *("data=rule", "optim.steps=3", f"paths.out={config.paths.out}"),
            *("resources.shard=fsdp", "resources.data_parallel=2"),
        ]
    )
    keep(probe_config(config), measured_in=MeasuredIn.probe)
    assert found(divided).measured == {}
    with pytest.raises(RequestError, match="--probe measures one process with the whole base"):
        found(divided, probe=True)


def test_what_is_known_is_not_probed_and_a_probe_that_breaks_says_why(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.plan.measured.PROBE", "harness.no_such_module")
    with pytest.raises(RunFailed, match=r"failed: .*No module named harness\.no_such_module"):
        found(config, probe=True)
    keep(probe_config(config), measured_in=MeasuredIn.probe)
    assert found(config, probe=True).measured == MEASURED
