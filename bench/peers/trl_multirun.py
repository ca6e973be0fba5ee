"""`python trl_multirun.py -m +task=TASK.json +rank=2,4 +lr=1e-3,1e-2`: TRL under Hydra's basic multirun.

Its launcher runs the jobs one after another in one process, which imports once; each job loads its base.
"""

import time
from dataclasses import replace
from typing import Any

import hydra
import trl  # noqa: F401  # pyright: ignore[reportMissingImports]  once, before the first job's time begins
from channel import Channel, Task
from peer import train_by_trl

CHANNEL = Channel()


@hydra.main(version_base="1.3", config_path=None)
def main(job: Any) -> None:
    """Train one job of the sweep."""
    task = Task.read(job.task)
    began = time.monotonic()
    alpha = task.alpha / task.rank * job.rank
    train_by_trl(replace(task, rank=job.rank, alpha=alpha, learning_rate=job.lr), CHANNEL)
    CHANNEL.mark("job", seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
