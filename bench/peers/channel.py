"""What the bench and its children say to each other: a task as a small json file, marks with times, turns.

Standard library only: it is imported in our environment and in the peers'. Without a bench (no BENCH_CHANNEL)
the same scripts run on their own, and marks go nowhere.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

DESCRIPTOR = "BENCH_CHANNEL"
"""Environment variable with the number of the open socket."""
BLOCK_STEPS = "BENCH_BLOCK_STEPS"
"""Environment variable: steps after which the child waits for its turn; 0: it never waits."""


class Channel:
    """Where a script says what it has reached."""

    def __init__(self) -> None:
        descriptor = os.environ.get(DESCRIPTOR)
        self._block_steps = int(os.environ.get(BLOCK_STEPS, "0"))
        self._line: IO[bytes] | None = None
        if descriptor is not None:
            self._line = open(int(descriptor), "r+b", buffering=0)  # noqa: SIM115  open until the end
        self._began = time.monotonic()

    def mark(self, name: str, **values: Any) -> None:
        """Say that `name` is reached now."""
        self._tell({"mark": name, "at": time.monotonic()} | values)

    def step_done(self, step: int) -> None:
        """Count an optimizer step, from 1; at the end of a block say how long it took and wait."""
        now = time.monotonic()
        if step == 1:
            self._tell({"mark": "first_step", "at": now})
        if self._line is None or not self._block_steps or step % self._block_steps:
            return
        self._tell({"mark": "block", "at": now, "step": step, "seconds": now - self._began})
        self._line.readline()
        self._began = time.monotonic()

    def _tell(self, message: dict[str, Any]) -> None:
        if self._line is not None:
            self._line.write(json.dumps(message).encode() + b"\n")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that a peer needs to do the same work as one of our runs."""

    model: str
    """A directory."""
    train_rows: str
    """A directory of `datasets`: columns input_ids and labels, in the order in which they are trained."""
    validation_rows: str
    rank: int
    alpha: float
    target_modules: list[str]
    seed: int
    steps: int
    batch_size: int
    eval_batch_size: int
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    max_grad_norm: float
    output: str
    """A directory for the adapter."""

    @classmethod
    def read(cls, path: str) -> "Task":
        """Read what `write` has written."""
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> Path:
        """Write the task to `path`; returns it."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path
