"""What only the model and its tokenizer can refuse: the driver, which has no torch, asks a worker."""

from collections.abc import Sequence
from pathlib import Path

from harness.config.schema import RunConfig
from harness.errors import RequestError, RunFailed
from harness.question.points import Point
from harness.sweeping.messages import Check, Checked, Ready
from harness.sweeping.pool import Device, Died, Pool

CHECK_SECONDS = 1800.0
SHOWN = 10


MAX_STARTS = 3
"""How often the check is begun where the worker that does it dies."""


def check_without_device(
    points: Sequence[tuple[Point, RunConfig]], logs: Path, *, keep: bool = True
) -> None:
    """Do what `refuse_what_does_not_fit` does in a process that sees no GPU and ends with the answer."""
    pool = Pool(logs, CHECK_SECONDS)
    pool.start(Device(name="check", environment={"CUDA_VISIBLE_DEVICES": ""}))
    try:
        refuse_what_does_not_fit(points, pool, keep=keep)
    finally:
        pool.kill()


def refuse_what_does_not_fit(
    points: Sequence[tuple[Point, RunConfig]], pool: Pool, *, keep: bool = True
) -> None:
    """Refuse points whose targets, rank or row length do not fit their model; trains nothing.

    Asks the first worker of `pool`, and one in its place where it dies. With `keep` what was tokenized
    stays in the cache. Raises RequestError that names each point, and RunFailed where workers die again
    and again.
    """
    check = Check(configs=tuple(config for _, config in points), keep=keep)
    asked = pool.workers[0]
    asked.send(check)
    deaths = 0
    while True:
        for worker, news in pool.hear(seconds=1.0):
            match news:
                case Ready():
                    worker.ready = True
                case Checked():
                    worker.busy = False
                    _refuse(points, news.refusals)
                    return
                case Died():
                    deaths += 1
                    if deaths == MAX_STARTS:
                        raise RunFailed(
                            f"the worker on {worker.device.name} {news.reason}, the last of {deaths}"
                        )
                    started = pool.start(worker.device)
                    if worker is asked:
                        asked = started
                        asked.send(check)
                case _:
                    pass


def _refuse(points: Sequence[tuple[Point, RunConfig]], refusals: Sequence[str | None]) -> None:
    bad: dict[str, list[str]] = {}
    for (point, _), refusal in zip(points, refusals, strict=True):
        if refusal is not None:
            text = " ".join(f"{key}={value}" for key, value in point.items())
            bad.setdefault(refusal, []).append(text)
    if not bad:
        return
    lines = [f"{refusal} (at {'; '.join(where[:3])})" for refusal, where in bad.items()]
    more = f"\n… and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    raise RequestError(
        f"{sum(map(len, bad.values()))} of the {len(points)} points of the space are refused:\n"
        + "\n".join(lines[:SHOWN])
        + more
    )


def check_against_model(check: Check) -> tuple[str | None, ...]:
    """Say of each configuration what model, targets, rank, data and row length refuse; trains nothing."""
    from harness.base.source import find_model, model_fingerprint
    from harness.errors import DataError
    from harness.training.launch import cache_directory, prepare

    known: dict[str, str | None] = {}
    refusals = []
    for config in check.configs:
        key = repr((config.model, config.data, config.eval.split, config.lora.target_modules))
        key += repr(config.lora)
        if key not in known:
            source = find_model(config.model)
            memo = cache_directory(config) / "fingerprints.json"
            try:
                fingerprint = model_fingerprint(source, memo, keep=check.keep)
                prepare(config, source, fingerprint, keep=check.keep)
                known[key] = None
            except (RequestError, DataError) as error:
                known[key] = str(error)
        refusals.append(known[key])
    return tuple(refusals)
