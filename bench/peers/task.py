"""One training as the peers' scripts get it: a small json file. Standard library only."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


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
