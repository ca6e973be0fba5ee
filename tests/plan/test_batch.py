"""The largest micro-batch: by the lengths of the rows of every one in every step, and as it is stated."""

import pytest
import torch

from harness.config.schema import OptimConfig, RunConfig
from harness.data.order import batch_rows
from harness.data.rows import NO_LOSS, TokenRows
from harness.plan.batch import WINDOW_STEPS, largest_micro_batch, stated_micro_batch
from harness.plan.prediction import BatchSize
from harness.plan.settings import PlanSettings

LENGTHS = [5, 9, 17, 30, 3, 25, 12, 33, 8, 21, 40, 2, 14]
LOSSES = [1 + index % 4 for index in range(len(LENGTHS))]


def rows_of(width: int) -> TokenRows:
    """Return rows of these lengths, of which the last few positions carry loss."""
    targets = torch.full((len(LENGTHS), width), NO_LOSS, dtype=torch.int32)
    for row, (length, losses) in enumerate(zip(LENGTHS, LOSSES, strict=True)):
        targets[row, max(0, length - losses) : length] = 7
    lengths = torch.tensor(LENGTHS)
    ids = torch.zeros_like(targets)
    return TokenRows(
        input_ids_NT=ids,
        targets_NT=targets,
        segments_NT=None,
        lengths_N=lengths,
        source_N=torch.arange(len(LENGTHS)),
    )


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("micro", [None, 2, 4])
@pytest.mark.parametrize("steps", [1, 3, 9])
def test_the_largest_is_found_among_all_of_the_steps(
    micro: int | None, steps: int, processes: int
) -> None:
    config = RunConfig(seed=5, optim=OptimConfig(batch_size=4, micro_batch_size=micro))
    config.resources.data_parallel = processes
    share = (micro or 4) // processes
    found: list[tuple[int, int, int, int]] = []
    for step in range(steps):
        order = batch_rows(len(LENGTHS), 4, 5, step).tolist()
        for part in (order[start : start + share] for start in range(0, 4, share)):
            longest = max(LENGTHS[row] for row in part)
            losses = sum(LOSSES[row] if LENGTHS[row] > 2 else 2 for row in part)
            found.append((share * -(-longest // 8) * 8, losses, -step, -(-longest // 8) * 8))
    area, losses, first, length = max(found)
    size, step = largest_micro_batch(config, rows_of(48), steps, apart=True)
    assert size == BatchSize(rows=share, length=length, loss_tokens=losses)
    assert (size.rows * size.length, step) == (area, -first)


def test_examples_that_share_rows_are_a_packed_micro_batch() -> None:
    config = RunConfig(seed=5, optim=OptimConfig(batch_size=13))
    size, _ = largest_micro_batch(config, rows_of(48), 1, apart=False)
    assert size.packed
    assert (size.length, size.loss_tokens) == (48, sum(LOSSES[:11]) + 2 + LOSSES[12])
    assert sum(LENGTHS) <= size.rows * 48 < len(LENGTHS) * 48
    assert WINDOW_STEPS > 100


def test_without_rows_it_is_as_stated_and_loss_is_on_no_more_than_there_is() -> None:
    config = RunConfig(optim=OptimConfig(batch_size=16, micro_batch_size=8))
    config.data.max_length = 100
    assert stated_micro_batch(config, PlanSettings()) == BatchSize(8, 100, 800)
    assert stated_micro_batch(config, PlanSettings(length=50)) == BatchSize(8, 50, 400)
    assert stated_micro_batch(config, PlanSettings(loss_tokens=30)) == BatchSize(8, 100, 30)
    assert stated_micro_batch(config, PlanSettings(loss_tokens=900)).loss_tokens == 800
    config.resources.data_parallel, config.data.packing = 2, True
    assert stated_micro_batch(config, PlanSettings()) == BatchSize(4, 100, 400, packed=True)
    config.optim.micro_batch_size = None
    assert stated_micro_batch(config, PlanSettings()).rows == 8
