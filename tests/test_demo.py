"""`make demo` in small: its grid on a tiny model."""

from pathlib import Path

import pytest

from harness import demo
from tests.random_models import LLAMA, save_random_model


def test_the_demo_ends_in_a_table_made_from_its_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_random_model(tmp_path / "llama", "llama", **LLAMA)
    monkeypatch.setattr(demo, "PROBE_STEPS", 5)
    overrides = [
        f"model='{model}'",
        f"paths.out='{tmp_path / 'out'}'",
        "optim.steps=3",
        "data.train_rows=64",
        "data.validation_rows=8",
        "data.test_rows=8",
        "eval.generate_rows=4",
        "eval.max_new_tokens=4",
        "tracker=none",
    ]
    assert demo.main(overrides) == 0
    first = capsys.readouterr().out
    quality, cost = first.split("Cost of one run alone")
    for text in (quality, cost):
        assert text.count("\n| ") == 2 + 8  # a heading, a rule, four formats × two ranks
    assert "exact match" in quality
    assert "MiB" in cost
    assert "—" not in cost.split("\n| int4", 1)[1].split("\n\n")[0]
    records = list((tmp_path / "out" / "runs").iterdir())
    assert len(records) == 16 + 8
    assert demo.main(overrides) == 0  # everything is there: nothing is trained again
    assert capsys.readouterr().out == first
