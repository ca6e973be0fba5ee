"""What is planned: a model without weights, a configuration, and the micro-batches that it will have."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from harness.base.packed_rows import why_apart
from harness.base.source import ModelSource, find_model, model_fingerprint
from harness.config.devices import resolved_device
from harness.config.keyed import Keyed
from harness.config.schema import (
    DataConfig,
    ModelConfig,
    OptimizerName,
    PathsConfig,
    RunConfig,
    TrackerConfig,
)
from harness.config.validate import validate
from harness.data.check import check_data
from harness.data.prepare import PreparedData, prepare_data
from harness.data.rows import TokenRows
from harness.errors import DataError, RequestError
from harness.parsing import home_path
from harness.plan.batch import largest_micro_batch, stated_micro_batch
from harness.plan.model import PlannedModel
from harness.plan.predict import predict
from harness.plan.prediction import BatchSize, Prediction
from harness.plan.settings import PlanSettings

MARGIN = 0.05
"""Relative error that a prediction may have: a configuration fits if it does with this much more."""

_MOST_STEPS = 2048
"""Steps of a run that are looked at for its largest micro-batch: a third of a second."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One configuration on one model, ready to be predicted."""

    model: PlannedModel
    config: RunConfig
    batch: BatchSize
    device: str
    """`cpu` or `cuda`."""
    batch_source: str
    """Source of the micro-batch's size, in words."""
    num_rows: int | None
    """Training rows; None where the data was not read."""

    def predict(self, cohort: int = 1) -> Prediction:
        """Return the memory of so many runs side by side."""
        return predict(self.model, self.config, self.batch, cohort=cohort, device=self.device)


def planned_device(settings: PlanSettings, config: RunConfig) -> str:
    """Return the kind of device that a plan is made for."""
    return settings.device or resolved_device(config.resources.device).partition(":")[0]


def subject_of(config: RunConfig, settings: PlanSettings) -> Subject:
    """Return what is to be predicted. Raises RequestError or DataError for what cannot run."""
    device = planned_device(settings, config)
    validate(judged_for(config, device))
    model = _model(Keyed(config.model), settings.shape)
    batch, source, num_rows = _micro_batch(config, settings, model)
    if model.max_positions is not None and batch.length > model.max_positions:
        raise RequestError(
            f"rows of {batch.length} positions do not fit {model.name}, which {model.beyond}; lower "
            "data.max_length or plan.length"
        )
    return Subject(model, config, batch, device, source, num_rows)


def judged_for(config: RunConfig, device: str) -> RunConfig:
    """Return the configuration as this machine can judge it: what it lacks says nothing of the planned
    one.
    """
    if device != "cuda":
        return config
    optim = config.optim
    unpaged = OptimizerName.adamw_8bit if optim.name.is_paged else optim.name
    offloads = optim.offload_activations and not optim.gradient_checkpointing
    return replace(
        config,
        resources=replace(config.resources, device="auto"),
        optim=replace(optim, name=unpaged, offload_activations=offloads),
    )


def predicted_run(
    source: ModelSource, config: RunConfig, rows: TokenRows, steps: int
) -> Prediction:
    """Return the prediction of a run on these rows, for the device that it runs on."""
    model = _loaded(source, Keyed(config.model))
    batch, _ = largest_micro_batch(config, rows, min(steps, _MOST_STEPS), apart=_apart(model))
    device = resolved_device(config.resources.device).partition(":")[0]
    same_cost = replace(
        config,
        optim=replace(config.optim, lr=1.0),
        seed=0,
        tracker=TrackerConfig(),
        paths=PathsConfig(),
    )
    return _predicted(source, Keyed(same_cost), batch, device)


@lru_cache(maxsize=64)  # of a sweep many runs cost the same, and each traces a pass
def _predicted(
    source: ModelSource, key: Keyed[RunConfig], batch: BatchSize, device: str
) -> Prediction:
    return predict(_loaded(source, Keyed(key.value.model)), key.value, batch, device=device)


def _apart(model: PlannedModel) -> bool:
    return why_apart(model.model.config) is not None


@lru_cache(maxsize=8)
def _model(key: Keyed[ModelConfig], shape: str | None) -> PlannedModel:
    if shape is not None:
        return PlannedModel.from_shape(shape, key.value)
    return _loaded(_source(key.value), key)


@lru_cache(maxsize=8)
def _loaded(source: ModelSource, key: Keyed[ModelConfig]) -> PlannedModel:
    return PlannedModel.from_source(source, key.value)


def _source(model: ModelConfig) -> ModelSource:
    """Return where the model's config.json is; a plan needs nothing else."""
    directory = home_path(model.name)
    if model.revision is None and (directory / "config.json").is_file():
        return ModelSource(name=model.name, directory=directory, revision=None)
    return find_model(model)


def _micro_batch(
    config: RunConfig, settings: PlanSettings, model: PlannedModel
) -> tuple[BatchSize, str, int | None]:
    if settings.shape is not None or settings.length is not None:
        stated = "stated" if settings.loss_tokens else "stated, loss on all positions"
        return stated_micro_batch(config, settings), stated, None
    try:
        source = find_model(config.model)
        check_data(config.data)
        data = _data(source, config)
    except (RequestError, DataError) as error:
        raise type(error)(
            f"{error}\n(the length of the rows comes from the data and the model's tokenizer; with "
            "plan.length=POSITIONS neither is needed)"
        ) from error
    batch, _ = largest_micro_batch(config, data.train, apart=_apart(model))
    if settings.loss_tokens is not None:
        batch = replace(batch, loss_tokens=min(settings.loss_tokens, batch.rows * batch.length))
    name = config.data.task or config.data.path or config.data.hub
    return batch, f"the largest of {name}", len(data.train)


_prepared: dict[tuple[str, str], PreparedData] = {}


def _data(source: ModelSource, config: RunConfig) -> PreparedData:
    """Tokenize the data, or take it from the cache of runs."""
    from harness.base.build import load_tokenizer

    data: DataConfig = config.data
    key = repr((source, config.model)), repr(data)
    if key not in _prepared:
        cache = Path(config.paths.cache or Path(config.paths.out) / "cache")
        fingerprint = model_fingerprint(source, cache / "fingerprints.json")
        tokenizer = load_tokenizer(source, config.model)
        _prepared[key] = prepare_data(data, tokenizer, fingerprint, cache / "data")
    return _prepared[key]
