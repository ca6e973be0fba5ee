"""Every architecture of docs/models.md has one loss in every layout, or says why it is not laid out so."""

from pathlib import Path

import pytest

from bench.models import MODELS, TOLERANCE, measure

_DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
_REFUSED = {"Falcon with ALiBi", "BLOOM"}


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_equal_in_every_layout(name: str):
    row = measure(name)
    assert row.differences
    assert all(difference <= TOLERANCE for difference in row.differences.values()), row
    assert ("packed" not in row.differences) is (name in _REFUSED)
    assert (row.cells["packed"].startswith("refused: positions")) is (name in _REFUSED)


def test_the_document_names_every_model():
    lines = _DOCUMENT.read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:] == list(
        MODELS
    )
