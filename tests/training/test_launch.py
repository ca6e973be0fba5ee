"""From a configuration to data and base: what is refused before weights are read, what a reader is told."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.source import ModelSource, find_model
from harness.config.compose import compose_run
from harness.config.schema import RunConfig, Split
from harness.data.prepare import PreparedData
from harness.errors import RequestError
from harness.training import launch
from harness.training.launch import cache_directory, data_notes, model_notes, prepare


@pytest.fixture
def config(sums: Path, tmp_path: Path) -> RunConfig:
    return compose_run(
        [
            *("data=pairs", f"data.path={sums}", "data.validation_rows=8", "data.test_rows=8"),
            *(f"paths.cache={tmp_path}", "optim.steps=1"),
        ]
    )


def with_positions(monkeypatch: pytest.MonkeyPatch, most: int | None) -> None:
    """Let the embedded model have so many positions."""
    real = launch.outline_and_tokenizer

    def described(*asked: Any) -> Any:
        outline, tokenizer = real(*asked)
        return replace(outline, max_positions=most, beyond=f"has {most} positions"), tokenizer

    monkeypatch.setattr(launch, "outline_and_tokenizer", described)


def test_rows_may_be_as_long_as_the_model_has_positions_and_no_longer(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_model(config.model)
    data = prepare(config, source, "m")
    assert len(data.train) == 44
    longest = max(data.train.row_length, data.validation.row_length)
    for most in (None, longest):
        with_positions(monkeypatch, most)
        assert prepare(config, source, "m").train.row_length == data.train.row_length
    with_positions(monkeypatch, longest - 1)
    with pytest.raises(
        RequestError, match=f"gives rows of {longest} tokens.* use at most {longest - 1}$"
    ):
        prepare(config, source, "m")


def test_nothing_is_left_in_the_cache_where_nothing_is_to_be_kept(
    config: RunConfig, tmp_path: Path
) -> None:
    prepare(config, find_model(config.model), "m", keep=False)
    assert not list((tmp_path / "data").glob("*"))
    prepare(config, find_model(config.model), "m")
    assert list((tmp_path / "data").glob("*"))


def test_examples_that_a_model_does_not_keep_apart_are_not_packed(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.data.packing = True
    prepare(config, find_model(config.model), "m")
    monkeypatch.setattr(launch, "why_apart", lambda _: "it has ALiBi")
    with pytest.raises(RequestError, match=r"a row of its own: it has ALiBi; use data\.packing=f"):
        prepare(config, find_model(config.model), "m")
    config.data.packing = False
    prepare(config, find_model(config.model), "m")


def report(**counts: int) -> Any:
    """Return a report of splits of ten examples each, of which so many were cut, changed or dropped."""
    nothing = {"examples": 10, "cut": 0, "changed": 0, "dropped": 0}
    splits = {
        Split.train: SimpleNamespace(**{**nothing, **counts}),
        Split.test: SimpleNamespace(**nothing),
    }
    return SimpleNamespace(report=SimpleNamespace(splits=splits))


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({}, []),
        ({"cut": 1}, ["1 of 10 train examples were cut at max_length"]),
        ({"changed": 2}, ["2 of 10 train examples have answers that the chat template renders"]),
        ({"dropped": 3}, ["3 of 10 train examples were left out: the cut left nothing"]),
        ({"cut": 1, "changed": 1, "dropped": 1}, ["1 of 10 train"] * 3),
    ],
)
def test_rows_that_are_not_as_the_data_had_them_are_counted(
    counts: dict[str, int], told: list[str]
) -> None:
    data: PreparedData = report(**counts)
    notes = data_notes(data)
    assert [note[: len(start)] for note, start in zip(notes, told, strict=True)] == told


@pytest.fixture(scope="module")
def outline() -> Any:
    config = compose_run([])
    return launch.outline_and_tokenizer(find_model(config.model), config.model, "m")[0]


def test_a_plain_model_needs_no_remark(outline: Any) -> None:
    assert model_notes(compose_run(["quant=nf4"]), outline) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"came_rounded": "Q4_1"}, "the base's weights came rounded to Q4_1"),
        (
            {"came_rounded": "Q4_1", "stored": SimpleNamespace(label="gptq int4")},
            "the base is stored as it came: gptq int4",
        ),
        ({"uncovered": {"experts.w": 10**9}}, "of the blocks' weights lie in no linear layer"),
    ],
)
def test_what_is_peculiar_about_a_base_is_told_once(
    outline: Any, fields: dict[str, Any], told: str
) -> None:
    (note,) = model_notes(compose_run(["quant=nf4"]), replace(outline, **fields))
    assert told in note


def test_how_it_attends_is_told_where_that_is_not_as_asked_or_keeps_rows_apart(
    outline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note,) = model_notes(compose_run(["model.attention=eager"]), outline)
    assert note.startswith("attention is sdpa: transformers has no eager for models of type llama")
    monkeypatch.setattr(launch, "why_apart", lambda _: "it has ALiBi")
    assert model_notes(compose_run([]), outline) == ["rows hold one example each: it has ALiBi"]


def test_the_cache_lies_in_the_output_unless_it_has_a_place_of_its_own() -> None:
    assert cache_directory(compose_run(["paths.out=x"])) == Path("x/cache")
    assert cache_directory(compose_run(["paths.out=x", "paths.cache=y"])) == Path("y")


def test_a_base_alone_has_no_adapter_to_attach() -> None:
    saved = SimpleNamespace(
        directory=None, source=ModelSource(name="m", directory=None, revision=None)
    )
    assert launch.attach_saved(None, saved) is None  # pyright: ignore[reportArgumentType]
