"""Rows of random tokens, for tests that need shapes and not words."""

from types import SimpleNamespace
from typing import Any, cast

import torch

from harness.config.schema import RunConfig
from harness.data.rows import NO_LOSS, TokenRows
from harness.training.job import Job


def random_rows(count: int = 32, length: int = 48, vocabulary: int = 259) -> TokenRows:
    """Return rows of random lengths, of which the second half carries loss."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (count, length), generator=generator, dtype=torch.int32)
    lengths = torch.randint(length // 2, length + 1, (count,), generator=generator)
    targets = torch.full_like(ids, NO_LOSS)
    for row, used in enumerate(lengths.tolist()):
        targets[row, used // 2 : used - 1] = ids[row, used // 2 + 1 : used]
        ids[row, used:] = 0
    return TokenRows(
        input_ids_NT=ids,
        targets_NT=targets,
        segments_NT=None,
        lengths_N=lengths.to(torch.int32),
        source_N=torch.arange(count, dtype=torch.int32),
    )


def job_on_random_rows(config: RunConfig) -> Job:
    """Return what a Slot reads of a job: configuration, name and training rows."""
    fields: Any = SimpleNamespace(
        config=config,
        run_id=f"seed{config.seed}",
        data=SimpleNamespace(train=random_rows()),
        is_probe=False,
    )
    return cast(Job, fields)
