"""Shared fixtures: the real pretrained model and data, where they lie beside the repository."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest's workers are the parallelism

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["WANDB_SILENT"] = "true"

import pytest

pytest_plugins = ["tests.postgres"]

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real data beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data directory ../shared/data is not beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    """A really pretrained Llama of 260,032 parameters."""
    return shared_data / "models" / "stories260K"
