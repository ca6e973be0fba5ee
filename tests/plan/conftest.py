"""Small models of every architecture, built for real and planned."""

import pytest

from harness.plan.model import PlannedModel
from harness.plan.prediction import BatchSize
from tests.plan.engine import Bases
from tests.random_models import SHAPES, UNEVEN, save_random_model


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """The embedded model, random models of other architectures, and one that no block size divides."""
    work = tmp_path_factory.mktemp("bases")
    directories = {"embedded": "embedded"}
    directories["uneven"] = str(save_random_model(work / "uneven", "llama", **UNEVEN))
    for name in ("gpt2", "gpt_neox", "qwen2"):
        directories[name] = str(save_random_model(work / name, name, **SHAPES[name]))
    return Bases(directories, work)


@pytest.fixture(scope="session")
def llama() -> PlannedModel:
    """Llama-2-7B, which is LLaMA-7B in its dimensions."""
    from harness.config.schema import ModelConfig

    return PlannedModel.from_shape("llama2_7b", ModelConfig())


@pytest.fixture
def batch() -> BatchSize:
    """Two rows of 16."""
    return BatchSize(rows=2, length=16, loss_tokens=11)
