"""From points to checked, identified requests: milliseconds each, since a sweep makes thousands."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from harness.base.source import ModelSource, find_model, model_fingerprint
from harness.config.compose import compose_run
from harness.config.identity import identify
from harness.config.keyed import Keyed
from harness.config.schema import DataConfig, ModelConfig, PathsConfig, RunConfig
from harness.data.check import data_fingerprint
from harness.evals.tasks import tasks_fingerprint
from harness.plan.probe import probe_config
from harness.question.points import Point
from harness.question.question import Question
from harness.records.run_directory import RunDirectory
from harness.request import Request, check, check_writable
from harness.sweeping.messages import Role


class RequestMaker:
    """Makes the requests of one sweep; what all of them share is looked up once."""

    def __init__(self, question: Question) -> None:
        self._space = question.space
        self._base = base_of(question)
        self._model = lru_cache(maxsize=None)(_model_of)
        self._data = lru_cache(maxsize=None)(_data_of)
        self._writable: set[str] = set()

    def config(self, point: Point, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the checked configuration of a point. Raises RequestError for what is refused."""
        config = compose_run([*self._base, *self._space.overrides(point), *overrides])
        check(config)
        return config

    def request(self, point: Point, overrides: Sequence[str], role: Role) -> Request:
        """Return the request for one run of a point; what is refused raises RequestError."""
        config = self.config(point, [*overrides, f"tracker.job_type={role.value}"])
        return self._identified(config)

    def probe(self, config: RunConfig) -> Request:
        """Return the request for the probe of a configuration: the same for all that cost the same."""
        tracker = replace(config.tracker, job_type=Role.probe.value)
        return self._identified(replace(probe_config(config), tracker=tracker))

    def _identified(self, config: RunConfig) -> Request:
        if repr(config.paths) not in self._writable:
            check_writable(config.paths)
            self._writable.add(repr(config.paths))
        source, fingerprint = self._model(Keyed(config.model), Keyed(config.paths))
        identity = identify(
            config,
            model_fingerprint=fingerprint,
            data_fingerprint=self._data(Keyed(config.data)),
            tasks_fingerprint=tasks_fingerprint(config.eval),
        )
        directory = RunDirectory(Path(config.paths.out) / "runs" / identity.run_id)
        return Request(config, source, fingerprint, identity, directory)


def _model_of(model: Keyed[ModelConfig], paths: Keyed[PathsConfig]) -> tuple[ModelSource, str]:
    source = find_model(model.value)
    cache = Path(paths.value.cache or Path(paths.value.out) / "cache")
    return source, model_fingerprint(source, cache / "fingerprints.json")


def _data_of(data: Keyed[DataConfig]) -> str:
    return data_fingerprint(data.value)


def base_of(question: Question) -> list[str]:
    """Return the overrides of every run: the question's, with the sweep as W&B's group."""
    given = {override.partition("=")[0] for override in question.base}
    group = [] if "tracker.group" in given else [f"tracker.group={question.name}"]
    return [*question.base, *group]
