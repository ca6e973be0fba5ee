"""The largest micro-batch of a run: from its rows, or as stated where there are none."""

from harness.config.schema import RunConfig
from harness.data.compact import without_padding
from harness.data.order import batch_rows
from harness.data.rows import Batch, TokenRows
from harness.plan.prediction import BatchSize
from harness.plan.settings import PlanSettings

WINDOW_STEPS = 256
"""Steps looked at, the first ones: rows are shuffled, so that more hardly find a larger micro-batch."""


def largest_micro_batch(
    config: RunConfig, rows: TokenRows, steps: int = WINDOW_STEPS, *, apart: bool
) -> tuple[BatchSize, int]:
    """Return the largest micro-batch of the first `steps`, as the engine lays it out, and its step.

    `apart`: each example has a row of its own (`harness.base.packed_rows.why_apart`).
    With data parallelism it is the share of one process.
    """
    optim, processes = config.optim, config.resources.data_parallel
    micro = optim.micro_batch_size or optim.batch_size
    found: list[tuple[BatchSize, int]] = []
    for step in range(steps):
        order = batch_rows(len(rows), optim.batch_size, config.seed, step)
        batches = (rows.batch(part) for part in order.split(micro // processes))
        found += [(_size(without_padding(batch, apart=apart)), step) for batch in batches]
    return max(found, key=lambda each: (each[0].rows * each[0].length, each[0].loss_tokens))


def _size(batch: Batch) -> BatchSize:
    rows, length = batch.input_ids_BT.shape
    return BatchSize(
        rows=rows,
        length=length,
        loss_tokens=max(1, batch.num_loss_tokens),
        packed=batch.segments_BT is not None,
    )


def stated_micro_batch(config: RunConfig, settings: PlanSettings) -> BatchSize:
    """Return the micro-batch of full rows: `plan.length` or `data.max_length` long, loss on all of it."""
    rows = config.optim.micro_batch_size or config.optim.batch_size
    rows //= config.resources.data_parallel
    length = settings.length or config.data.max_length
    loss_tokens = min(settings.loss_tokens or rows * length, rows * length)
    return BatchSize(rows=rows, length=length, loss_tokens=loss_tokens, packed=config.data.packing)
