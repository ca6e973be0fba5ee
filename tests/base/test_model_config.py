"""What is made of a model's own words: refusals in ours, a configuration that drops and quantizes nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.model_config import prepared_config, read_config, refusing
from harness.base.source import ModelSource, find_model
from harness.config.schema import ModelConfig
from harness.errors import RequestError
from tests.random_models import LLAMA, SHAPES, save_random_model

HERE = ModelSource(name="m", directory=Path("/models/m"), revision=None)
HUB = ModelSource(name="org/m", directory=None, revision="abc")


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        (HERE, ValueError("\n bad header\nmore"), "cannot be loaded from /models/m: bad header "),
        (HERE, AttributeError(), "cannot be loaded from /models/m: AttributeError "),
        (HUB, OSError("no route"), "cannot be loaded from Hugging Face id org/m: no route "),
    ],
)
def test_what_a_reader_raises_is_told_by_its_first_line(
    source: ModelSource, error: Exception, told: str
) -> None:
    with pytest.raises(RequestError) as refused, refusing(source):
        raise error
    assert told in str(refused.value)
    assert refused.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RequestError("said already"),
        MemoryError("of what"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_what_has_been_said_and_what_is_no_fault_of_the_model_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as passed, refusing(HERE):
        raise error
    assert passed.value is error


def test_every_dropout_is_off_and_nothing_else_is_changed(tmp_path: Path) -> None:
    model = save_random_model(tmp_path, "gpt2", **SHAPES["gpt2"])
    config = ModelConfig(name=str(model))
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(model).to_dict()
    ours = read_config(find_model(config), config).config.to_dict()
    drops = {name for name, value in theirs.items() if "drop" in name and value}
    assert drops == {"attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"}
    assert {name: ours[name] for name in drops} == dict.fromkeys(drops, 0.0)
    assert {k: v for k, v in ours.items() if k not in drops} == {
        k: v for k, v in theirs.items() if k not in drops
    }


def test_a_number_of_drops_that_is_no_share_stays(tmp_path: Path) -> None:
    config: Any = SimpleNamespace(drop_path=0.1, dropped=3, rate=0.5)
    config.to_dict = lambda: {"drop_path": 0.1, "dropped": 3, "rate": 0.5}
    config = prepared_config(config, ModelConfig(name="m"))
    assert (config.drop_path, config.dropped, config.rate) == (0.0, 3, 0.5)


def test_a_models_configuration_says_how_its_weights_came(tmp_path: Path) -> None:
    model = save_random_model(tmp_path, "llama", **LLAMA)
    config = ModelConfig(name=str(model))
    assert read_config(find_model(config), config).stored is None
