"""Evaluating the runs of a cohort: the untouched base once for all, adapters of one moment side by side.

A run's results are those that it would have alone: the same batches, each row with its own adapter.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch

from harness.config.schema import EvalConfig
from harness.data.rows import Batch
from harness.engine.adapter import Adapter
from harness.engine.cuda.backend import CudaBackend
from harness.engine.cuda.decoding import DecodingSize
from harness.engine.micro_step import Work
from harness.engine.shared_base import SharedBase
from harness.evals.context import evaluating
from harness.evals.copies import Copies, QuickCopies
from harness.evals.evaluate import Results, evaluate_copies, task_results
from harness.evals.generation import Decoding, Generated, generate_copies
from harness.measure.memory import is_out_of_memory
from harness.training.entry import RunEntry
from harness.training.passes import captured_of


def evaluate_untouched(shared: SharedBase, entry: RunEntry) -> Results:
    """Return the results of the base before training, computed once for all runs that ask for the same."""
    if entry.job.config.lora.rewrites_base:
        return _evaluate(shared, [entry], loss_only=False)[0]
    known = shared.untouched_results
    key = _asked(entry)
    if key not in known:
        known[key] = _evaluate(shared, [entry], loss_only=False, adapted=False)[0]
    results = known[key]
    assert isinstance(results, Results)
    return results


def evaluate_together(
    shared: SharedBase, entries: Sequence[RunEntry], *, loss_only: bool
) -> Iterator[tuple[RunEntry, Results | Exception]]:
    """Yield each run with its results, or what went wrong in its evaluation; runs that ask alike share it."""
    kinds: dict[str, list[RunEntry]] = {}
    for entry in entries:
        kinds.setdefault(_asked(entry), []).append(entry)
    for kind in kinds.values():
        for entry, results in zip(kind, _outcomes(shared, kind, loss_only), strict=True):
            if isinstance(results, Results):
                entry.tell_forgetting(results)
            yield entry, results


def answer_side_by_side(
    shared: SharedBase,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
) -> list[Generated]:
    """Return each adapter's answers to the same prompts; None stands for the base, which comes alone."""
    copies = _copies(shared, adapters)
    with shared.backend.decoded(), evaluating(shared.model):
        return generate_copies(
            shared.model, shared.base.tokenizer, prompts, decoding, shared.base.device, copies
        )


def score_side_by_side(
    shared: SharedBase, adapters: Sequence[Adapter | None], asked: EvalConfig
) -> list[Results]:
    """Return each adapter's scores on the tasks of `asked`; None stands for the base, which comes alone."""
    copies = _copies(shared, adapters)
    with shared.backend.decoded(), evaluating(shared.model):
        return task_results(shared.model, shared.base.tokenizer, asked, shared.base.device, copies)


def _copies(
    shared: SharedBase, adapters: Sequence[Adapter | None], quick: QuickCopies | None = None
) -> Copies:
    """Return a base with each of some adapters, or alone."""
    made = [adapter for adapter in adapters if adapter is not None]
    assert len(made) == len(adapters) or len(adapters) == 1

    def sharing(chosen: Sequence[int], rows: int) -> AbstractContextManager[None]:
        if not made:
            return shared.only(None)
        return shared.side_by_side([made[index] for index in chosen], rows)

    return Copies(len(adapters), sharing, quick)


def _asked(entry: RunEntry) -> str:
    config = entry.job.config
    return f"{entry.job.data.fingerprint} {config.data} {config.eval}"


def _outcomes(
    shared: SharedBase, entries: Sequence[RunEntry], loss_only: bool
) -> list[Results | Exception]:
    """Evaluate runs side by side; where that fails, find out whose fault it was."""
    try:
        return list(_evaluate(shared, entries, loss_only=loss_only))
    except Exception as error:
        if len(entries) == 1:
            return [error]
        size = (len(entries) + 1) // 2 if is_out_of_memory(error) else 1
    parts = [entries[start : start + size] for start in range(0, len(entries), size)]
    return [outcome for part in parts for outcome in _outcomes(shared, part, loss_only)]


def _evaluate(
    shared: SharedBase, entries: Sequence[RunEntry], *, loss_only: bool, adapted: bool = True
) -> list[Results]:
    """Evaluate the adapters of runs that ask for the same, or the base below them."""
    first = entries[0].job
    adapters = [entry.slot.adapter for entry in entries] if adapted else [None]
    captured = captured_of(shared, entries) if adapted else None
    quick = None if captured is None else _InSeats(captured, [e.slot.adapter for e in entries])
    with ExitStack() as phases:
        for entry in entries:
            phases.enter_context(entry.phase_peak())
            if adapted:
                entry.slot.bring()
            if captured is not None:
                entry.slot.sit(captured)
        if captured is not None:
            phases.callback(captured.end_decoding)
        phases.enter_context(shared.backend.decoded())
        return evaluate_copies(
            shared.model,
            shared.base.tokenizer,
            first.data,
            first.config.eval,
            first.config.data,
            copies=_copies(shared, adapters, quick),
            loss_only=loss_only,
        )


@dataclass(frozen=True, slots=True)
class _InSeats:
    """The adapters of runs in seats, scored and asked in captured passes (`QuickCopies`)."""

    backend: CudaBackend
    adapters: Sequence[Adapter]

    def score(self, chosen: Sequence[int], batch: Batch) -> list[torch.Tensor]:
        """Return for each chosen run [2, M]: cross-entropies, and where the top token is right."""
        return self.backend.score(
            [
                Work(
                    adapter=self.adapters[index],
                    batch=batch,
                    loss_tokens=1,
                    dropout_key=None,
                    recompute=False,
                )
                for index in chosen
            ]
        )

    def at_once(self, size: DecodingSize) -> int:
        """Return how many runs may answer together."""
        return self.backend.adapters_at_once(size)

    def answers(
        self,
        chosen: Sequence[int],
        prompts: Sequence[Sequence[int]],
        size: DecodingSize,
        stop_ids: Sequence[int],
    ) -> list[list[list[int]]]:
        """Return each chosen run's continuation of each prompt."""
        adapters = [self.adapters[index] for index in chosen]
        return self.backend.answers(adapters, prompts, size, stop_ids)
