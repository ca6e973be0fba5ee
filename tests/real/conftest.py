"""Published data and models that are no part of the project: `make test-data TEST_DATA=DIRECTORY`.

Nothing here is needed for a promise: the same is tested on made rows and on the embedded model elsewhere.
"""

import os
from pathlib import Path

import pytest

from tests.real.smollm2 import convert, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever lies here."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("data")


@pytest.fixture(scope="session")
def published() -> Path:
    """The directory of published data: instruct/, eval/ and models/."""
    directory = Path(os.environ.get("TEST_DATA", "TEST_DATA is not set"))
    if not directory.is_dir():
        pytest.skip(f"no published data: {directory}; make test-data TEST_DATA=DIRECTORY")
    return directory


@pytest.fixture(scope="session")
def stories(published: Path) -> Path:
    """stories260K of llama2.c in Hugging Face's form."""
    return published / "models" / "stories260K"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct out of its package; skipped where the package or gguf is missing."""
    problem = missing()
    if problem is not None:
        pytest.skip(problem)
    return convert(tmp_path_factory.mktemp("smollm2"))
