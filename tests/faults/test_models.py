"""Models as they should not be: heads of GGUF files, packed weights and tokenizers, damaged at random."""

import json
import random
import shutil
import struct

import pytest

from harness.cli.main import dispatch
from tests.faults.damage import damaged
from tests.faults.tally import TIMES

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
HEAD = 3000
"""Bytes at the beginning of a file in which most of what is damaged lies."""


def with_damaged_head(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Damage what a file says of itself, and leave its weights."""
    what, head = damaged(content[:HEAD], chance)
    return what, head + content[HEAD:]


def ends_in_words(capfd: pytest.CaptureFixture[str], words: list[str]) -> bool:
    """Whether a command ends well, with a failed run, or with a refusal in a sentence."""
    capfd.readouterr()
    code = dispatch(words)
    said = capfd.readouterr()
    assert code in (0, 1, 2), said.err[-600:]
    assert "Traceback" not in said.err, said.err[-600:]
    assert code == 0 or "harness: " in said.err, f"exit {code}: {said.err[-600:]!r}"
    return True


@pytest.fixture
def few(world, tmp_path) -> list[str]:
    """Overrides of a run of one step."""
    return [
        *("data=pairs", f"data.path={world / 'sums.jsonl'}", "data.validation_rows=4"),
        *("data.test_rows=4", "data.max_length=64", "optim.steps=1", "optim.batch_size=2"),
        *("eval=loss", "tracker=none", f"paths.out={tmp_path / 'out'}"),
    ]


@pytest.mark.parametrize("tries", [14 * TIMES])
def test_a_gguf_file_with_a_damaged_head(few, tmp_path, tries, tally, capfd):
    pytest.importorskip("gguf")
    from tests.base.gguf_models import save_gguf

    save_gguf(tmp_path / "sound.gguf")
    sound, chance = (tmp_path / "sound.gguf").read_bytes(), random.Random(91)
    with tally("damaged GGUF files") as row:
        for number in range(tries):
            what, content = with_damaged_head(sound, chance)
            file = tmp_path / "damaged.gguf"
            file.write_bytes(content)
            for words in (["plan", "plan.length=16"], ["run"]):
                given = [*words, f"model={file}", *(few if words == ["run"] else few[-1:])]
                row.check(f"{number} {what}, {words[0]}", lambda w=given: ends_in_words(capfd, w))


def nested_arrays(depth: int) -> bytes:
    """Return a GGUF head with arrays in arrays."""
    key = b"x"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    return head + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth


@pytest.mark.parametrize(
    "content", [nested_arrays(50_000), b"GGUF", b"", b"GGUF" + b"\xff" * 64], ids=range(4)
)
def test_a_gguf_file_that_is_none(tmp_path, content, tally, capfd):
    pytest.importorskip("gguf")
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with tally("damaged GGUF files") as row:
        row.check(repr(content[:8]), lambda: dispatch(["plan", f"model={file}"]) == 2)


@pytest.mark.parametrize("tries", [12 * TIMES])
def test_packed_weights_with_a_damaged_head(world, few, tmp_path, tries, tally, capfd):
    from tests.base.test_prequantized import gptq_checkpoint

    sound = tmp_path / "sound"
    shutil.copytree(world / "tiny", sound)
    gptq_checkpoint(sound, "gptq", 32, False)
    names = ["model.safetensors", "config.json"]
    chance = random.Random(92)
    with tally("damaged packed weights") as row:
        for number in range(tries):
            model = tmp_path / "model"
            shutil.rmtree(model, ignore_errors=True)
            shutil.copytree(sound, model)
            file = model / names[number % len(names)]
            content = file.read_bytes()
            size = 8 + struct.unpack("<Q", content[:8])[0] if file.suffix == ".safetensors" else 0
            what, head = damaged(content[8:size] or content, chance)
            if size and chance.random() < 0.7:  # the head's length is right
                content = struct.pack("<Q", len(head)) + head + content[size:]
            else:
                content = head if not size else content[:8] + head + content[size:]
            file.write_bytes(content)
            for words in (["plan", "plan.length=16"], ["run"]):
                given = [*words, f"model={model}", *(few if words == ["run"] else few[-1:])]
                row.check(
                    f"{number} {file.name} {what}, {words[0]}",
                    lambda w=given: ends_in_words(capfd, w),
                )


TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.mark.parametrize("tries", [16 * TIMES])
def test_a_damaged_tokenizer(world, few, tmp_path, tries, tally, capfd):
    model, chance = tmp_path / "model", random.Random(93)
    shutil.copytree(world / "tiny", model)
    files = [model / name for name in TOKENIZERS if (model / name).is_file()]
    with tally("damaged tokenizers") as row:
        for number in range(tries):
            file = files[number % len(files)]
            sound = file.read_bytes()
            what, content = damaged(sound, chance)
            file.write_bytes(content)
            words = ["data", f"model={model}", *few]
            row.check(f"{number} {file.name} {what}", lambda w=words: ends_in_words(capfd, w))
            file.write_bytes(sound)
        for template in (
            "{{ x",
            "{% for i in range(10**9) %}{% endfor %}",
            3,
            [],
            {"a": "b"},
            "\0",
        ):
            file = model / "tokenizer_config.json"
            sound = file.read_bytes()
            file.write_text(json.dumps(json.loads(sound) | {"chat_template": template}))
            words = ["data", f"model={model}", *few, "data.template=tokenizer"]
            row.check(f"template {template!r}", lambda w=words: ends_in_words(capfd, w))
            file.write_bytes(sound)
