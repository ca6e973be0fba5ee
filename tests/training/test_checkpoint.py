"""Checkpoints come back as they were written, or not at all."""

import random
import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.training.checkpoint import (
    Checkpoint,
    Progress,
    load_newest_checkpoint,
    save_checkpoint,
)

CPU = torch.device("cpu")


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    shapes = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=4))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return {
        f"layer.{index}": (100 * torch.randn(shape, generator=generator)).to(dtype)
        for index, shape in enumerate(shapes)
    }


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    loss = st.none() | st.floats(allow_nan=False)
    results = st.dictionaries(
        st.sampled_from(["eval/loss", "eval/perplexity"]),
        st.dictionaries(st.sampled_from(["value", "standard_error"]), loss),
    )
    return Checkpoint(
        progress=Progress(
            run_id="run",
            step=draw(st.integers(0, 10**7)),
            wall_seconds=draw(st.floats(0, 1e9)),
            best_loss=draw(loss),
            best_step=draw(st.none() | st.integers(0, 10**6)),
            before=draw(st.none() | results),
        ),
        adapter=draw(tensors()),
        optimizer={"state": {0: draw(tensors())}, "param_groups": [{"lr": draw(st.floats(0, 1))}]},
        best_adapter=draw(st.none() | tensors()),
    )


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key])
        for key, value in one.items()
    )


@given(checkpoint=checkpoints())
def test_a_checkpoint_comes_back_as_it_was_written(checkpoint: Checkpoint) -> None:
    with tempfile.TemporaryDirectory() as place:
        save_checkpoint(Path(place), checkpoint, keep=1)
        found, notes = load_newest_checkpoint(Path(place), "run", CPU)
    assert notes == []
    assert found is not None
    assert found.progress == checkpoint.progress
    assert same(found.adapter, checkpoint.adapter)
    assert same(found.best_adapter, checkpoint.best_adapter)
    assert same(found.optimizer["state"][0], checkpoint.optimizer["state"][0])
    assert found.optimizer["param_groups"] == checkpoint.optimizer["param_groups"]


@given(checkpoint=checkpoints(), seed=st.integers(0, 2**31))
def test_one_flipped_bit_anywhere_is_noticed(checkpoint: Checkpoint, seed: int) -> None:
    """The one before is used, and a note names the damaged file."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        save_checkpoint(Path(place), checkpoint, keep=2)
        checkpoint.progress.step += 1
        newest = save_checkpoint(Path(place), checkpoint, keep=2)
        harmed = draw.choice([file for file in newest.iterdir() if file.suffix == ".pt"])
        content = bytearray(harmed.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        harmed.write_bytes(content)
        found, (note,) = load_newest_checkpoint(Path(place), "run", CPU)
    assert found is not None
    assert found.progress.step == checkpoint.progress.step - 1
    assert f"{newest.name} is damaged ({harmed.name} does not match its hash)" in note


@given(kept=st.integers(1, 4), steps=st.lists(st.integers(0, 50), min_size=1, unique=True))
def test_the_newest_are_kept(kept: int, steps: list[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        for step in sorted(steps):
            progress = Progress(run_id="run", step=step)
            made = Checkpoint(progress=progress, adapter={}, optimizer={}, best_adapter=None)
            save_checkpoint(Path(place), made, keep=kept)
        names = sorted(path.name for path in Path(place).iterdir())
    assert names == [f"step-{step:08d}" for step in sorted(steps)[-kept:]]


def test_a_checkpoint_of_another_run_is_set_aside(tmp_path: Path) -> None:
    progress = Progress(run_id="run", step=1)
    made = Checkpoint(progress=progress, adapter={}, optimizer={}, best_adapter=None)
    save_checkpoint(tmp_path, made, keep=1)
    found, notes = load_newest_checkpoint(tmp_path, "another", CPU)
    assert found is None
    assert "it is of run run" in notes[0]
    assert not list(tmp_path.glob("step-????????"))
