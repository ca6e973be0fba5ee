"""TensorBoard as a mirror: event files by the library's own writer, which has a thread of its own.

torch's SummaryWriter is imported when the first run opens one; without the package tensorboard the request
was refused before.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records.answers import SAMPLE_COLUMNS, KeptAnswer, samples
from harness.records.metrics_log import check_metric_names
from harness.records.record import Record
from harness.records.redact import redact, redact_tree
from harness.records.scores import RowScores
from harness.tracking.final_values import final_values

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorboardTracker:
    """One run's event files; a resumed run adds a further one."""

    def __init__(self, directory: Path, config_tree: Mapping[str, Any]) -> None:
        self._writer: SummaryWriter | None = None
        self._problems: list[str] = []
        self._last_step = -1
        try:
            from torch.utils import tensorboard

            self._writer = tensorboard.SummaryWriter(str(directory))
            self._writer.add_text("config", _as_code(redact_tree(config_tree)))
        except Exception as error:  # the mirror breaks, the run goes on
            self._break(error)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Queue one scalar for each value."""
        assert step >= self._last_step, f"step {step} after step {self._last_step}"
        check_metric_names(values)
        self._last_step = step
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)
        except Exception as error:
            self._break(error)

    def log_earlier(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Leave them: TensorBoard shows all event files of a run as one, and would show these twice."""

    def finish(
        self,
        record: Record,
        answers: Sequence[KeptAnswer],
        scores: Mapping[str, RowScores] | None = None,
    ) -> list[str]:
        """Write the final values as scalars of the last step, a few answers as text, and close."""
        if self._writer is not None:
            try:
                step = max(self._last_step, 0)
                for name, value in final_values(record).items():
                    if value is not None:
                        self._writer.add_scalar(f"final/{name}", value, step)
                if rows := samples(answers):
                    self._writer.add_text("samples", _as_table(rows), step)
                self._writer.add_text("status", record.status.value, step)
                self._writer.close()
            except Exception as error:
                self._break(error)
        return list(self._problems)

    def _break(self, error: Exception) -> None:
        self._writer = None
        self._problems.append(redact(f"TensorBoard failed: {type(error).__name__}: {error}"))


def _as_code(tree: Any) -> str:
    import yaml

    lines = yaml.safe_dump(tree, sort_keys=False).splitlines()
    return "\n".join(f"    {line}" for line in lines)


def _as_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(SAMPLE_COLUMNS) + " |", "|" + "---|" * len(SAMPLE_COLUMNS)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return escape(text).replace("|", "&#124;").replace("\n", "<br>")
