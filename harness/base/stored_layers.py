"""Layers of a checkpoint that came quantized, in our storages: repacked code by code, and never rounded.

Layouts as their writers read them: bitsandbytes 0.50 (`QuantState.from_dict`, `Linear8bitLt`), AutoGPTQ 0.7
and GPTQModel (`QuantLinear.dequantize_weight`), AutoAWQ 0.2 (`awq/utils/packing_utils.py`).

Shape suffixes: O outputs, I inputs, G groups of inputs.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, assert_never

import torch

from harness.base.blocks import block_linears
from harness.base.code_books import pack, table, unpacked_pairs
from harness.base.prequantized import (
    BITSANDBYTES_BLOCK,
    BitsAndBytesWeights,
    GroupedMethod,
    GroupedWeights,
    StoredWeights,
)
from harness.base.source import ModelSource
from harness.base.storage import (
    DOUBLE_QUANT_BLOCK,
    Blockwise,
    GroupedInt4,
    Storage,
    Tensors,
    dynamic_table,
)
from harness.base.targets import LinearSpec
from harness.config.schema import QuantFormat
from harness.errors import RequestError

_PER_INT32 = 8
"""4-bit values in a 32-bit word."""
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word output n of eight lies: AutoAWQ packs outputs 0, 2, 4, 6, 1, 3, 5, 7 in this order."""


def load_stored(
    source: ModelSource, empty: Any, stored: StoredWeights, storage: Storage, device: torch.device
) -> Any:
    """Return the model with the layers of its blocks as they came, and all else as its checkpoint has it.

    `empty`: the model on the meta device. Raises RequestError for a layer that is not stored as the
    configuration says.
    """
    with ExitStack() as files:
        checkpoint = _Checkpoint(source, files)
        inside: set[str] = set()
        for spec in list(block_linears(empty)):
            kept = _layer(source.name, checkpoint.under(spec.name), spec, stored, storage)
            bias = checkpoint.get(f"{spec.name}.bias")
            bias = None if bias is None else bias.to(device, storage.dtype)
            on_device = {name: tensor.to(device) for name, tensor in kept.items()}
            layer = storage.restore(on_device, spec.in_features, spec.out_features, bias)
            empty.set_submodule(spec.name, layer)
            inside.add(spec.name)
        rest = {
            key: checkpoint.get(key)
            for key in checkpoint.keys
            if not inside & {key[:end] for end, letter in enumerate(key) if letter == "."}
        }
    return _completed(source.name, empty, rest)


def _completed(name: str, model: Any, rest: Mapping[str, torch.Tensor | None]) -> Any:
    """Give the model what lies outside the layers of its blocks, and see that nothing is missing."""
    model.load_state_dict(dict(rest), strict=False, assign=True)
    model.tie_weights()
    missing = [key for key, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise RequestError(
            f"model={name} came with no plain tensor for {missing[0]}"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}, and only the linear layers of the "
            "blocks are read from their quantized form; give a checkpoint that leaves the others alone"
        )
    return model


class _Checkpoint:
    """The tensors of a checkpoint's safetensors files, each read when it is asked for."""

    def __init__(self, source: ModelSource, files: ExitStack) -> None:
        from safetensors import safe_open

        self._of: dict[str, Any] = {}
        for file in _files(source):
            opened = files.enter_context(safe_open(file, framework="pt"))
            self._of |= dict.fromkeys(opened.keys(), opened)

    @property
    def keys(self) -> list[str]:
        return list(self._of)

    def get(self, key: str) -> torch.Tensor | None:
        return self._of[key].get_tensor(key) if key in self._of else None

    def under(self, name: str) -> Tensors:
        """Return the tensors of one layer by their names in it."""
        start = f"{name}."
        return {
            key[len(start) :]: self._of[key].get_tensor(key)
            for key in self._of
            if key.startswith(start)
        }


def _files(source: ModelSource) -> list[Path]:
    directory = source.directory
    if directory is None:
        from huggingface_hub import snapshot_download

        wanted = ["*.safetensors", "*.json"]
        directory = Path(
            snapshot_download(source.name, revision=source.revision, allow_patterns=wanted)
        )
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        named = json.loads(index.read_bytes())["weight_map"].values()
        return [directory / name for name in sorted(set(named))]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise RequestError(
            f"model={source.name} came quantized, and has no *.safetensors from which its codes could be read"
        )
    return files


def _layer(
    name: str, tensors: Tensors, spec: LinearSpec, stored: StoredWeights, storage: Storage
) -> Tensors:
    """Return what a storage keeps of one layer."""
    try:
        match stored:
            case BitsAndBytesWeights(format=QuantFormat.int8):
                kept = _bitsandbytes_8(tensors)
            case BitsAndBytesWeights():
                assert isinstance(storage, Blockwise)
                kept = _bitsandbytes_4(tensors, spec, storage)
            case GroupedWeights():
                assert isinstance(storage, GroupedInt4)
                kept = _grouped(tensors, spec, storage)
            case _ as unreachable:
                assert_never(unreachable)
    except KeyError as error:
        raise RequestError(
            f"model={name}: {spec.name} came without {error.args[0]} (it has "
            f"{', '.join(sorted(tensors)) or 'nothing'}), so it is not stored as the others, {stored.label}; "
            "one storage for all linear layers of the blocks is read"
        ) from None
    except _Mismatch as error:
        raise RequestError(f"model={name}: {spec.name} {error}") from None
    outline = storage.outline(spec)
    for part, tensor in kept.items():
        if part in outline and tensor.shape != outline[part].shape:
            raise RequestError(
                f"model={name}: {part} of {spec.name} came as {tuple(tensor.shape)}, and a layer of "
                f"{spec.in_features} -> {spec.out_features} stored as {stored.label} has "
                f"{tuple(outline[part].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RequestError(f"model={name} has NaN or infinite weights: {part} of {spec.name}")
    return kept


class _Mismatch(ValueError):
    """A layer that is stored otherwise than its configuration says; ends a sentence that begins with it."""


# bitsandbytes ------------------------------------------------------------------------------------


def _bitsandbytes_8(tensors: Tensors) -> Tensors:
    codes = tensors["weight"]
    if codes.dtype is not torch.int8:
        raise KeyError("int8 codes")
    return {"packed": codes, "scale": tensors["SCB"].float().reshape(-1)}


def _bitsandbytes_4(tensors: Tensors, spec: LinearSpec, storage: Blockwise) -> Tensors:
    """Return codes and constants; both libraries' nested constants are one scheme (QLoRA, section 3)."""
    absmax, kind = tensors["weight.absmax"], storage.quant.format.value
    state = _state(tensors[f"weight.quant_state.bitsandbytes__{kind}"])
    count, size = spec.in_features * spec.out_features, state.get("blocksize")
    if size != BITSANDBYTES_BLOCK:
        raise _Mismatch(f"came in blocks of {size}, and {BITSANDBYTES_BLOCK} is what is read")
    if tuple(state.get("shape") or ()) != (spec.out_features, spec.in_features):
        raise _Mismatch(
            f"came as {state.get('shape')} and is {spec.in_features} -> {spec.out_features}"
        )
    _same_table(tensors["weight.quant_map"], table(storage.book, torch.device("cpu")), kind)
    # Codes are bytes in whatever type FSDP wanted them in (`bnb_4bit_quant_storage`).
    pairs = tensors["weight"].contiguous().reshape(-1).view(torch.uint8)
    codes_OI = unpacked_pairs(pairs)[:count].view(spec.out_features, spec.in_features)
    packed = pack(codes_OI, 4)
    if not storage.quant.double_quant:
        return {"packed": packed, "scale": absmax.float()}
    second = state.get("nested_blocksize")
    if second != DOUBLE_QUANT_BLOCK:
        raise _Mismatch(f"has its constants in blocks of {second}, not {DOUBLE_QUANT_BLOCK}")
    _same_table(
        tensors["weight.nested_quant_map"], dynamic_table(torch.device("cpu")), "the constants"
    )
    return {
        "packed": packed,
        "scale_codes": absmax,
        "scale_absmax": tensors["weight.nested_absmax"].float(),
        "scale_mean": torch.tensor(float(state["nested_offset"])),
    }


def _state(packed: torch.Tensor) -> dict[str, Any]:
    """Return what bitsandbytes keeps of a layer besides tensors: JSON in bytes."""
    try:
        found = json.loads(bytes(packed.to(torch.uint8).tolist()))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _Mismatch("has a damaged quant_state")
    return found


def _same_table(theirs: torch.Tensor, ours: torch.Tensor, what: str) -> None:
    if not torch.equal(theirs.float(), ours):
        raise _Mismatch(f"came with values for the codes of {what} that bitsandbytes does not have")


# GPTQ and AWQ ------------------------------------------------------------------------------------


def _grouped(tensors: Tensors, spec: LinearSpec, storage: GroupedInt4) -> Tensors:
    """Return 4-bit codes with a scale and a zero point for each group of an output's inputs."""
    match storage.stored.method:
        case (
            GroupedMethod.gptq | GroupedMethod.gptq_v2
        ):  # words along inputs; of zeros along outputs
            codes_OI = _words(tensors["qweight"].T)
            zero_GO = _words(tensors["qzeros"])
        case GroupedMethod.awq:  # words along outputs, interleaved
            codes_OI = _words(tensors["qweight"], _AWQ_PLACES).T
            zero_GO = _words(tensors["qzeros"], _AWQ_PLACES)
        case _ as unreachable:
            assert_never(unreachable)
    if storage.stored.method is GroupedMethod.gptq:
        zero_GO = zero_GO + 1
    if tuple(codes_OI.shape) != (spec.out_features, spec.in_features):
        raise _Mismatch(
            f"came as {tuple(codes_OI.shape)} codes and is {spec.in_features} -> {spec.out_features}"
        )
    kept = {
        "packed": pack(codes_OI.contiguous(), 4),
        "scale": tensors["scales"].T.contiguous(),
        "zero": zero_GO.T.contiguous(),
    }
    group_I = tensors.get("g_idx")
    if group_I is None or group_I.numel() == 0:
        return kept
    group_I, groups = group_I.to(torch.int32), kept["scale"].shape[1]
    if bool((group_I < 0).any()) or bool((group_I >= groups).any()):
        raise _Mismatch(f"has inputs in groups beyond its {groups}")
    in_order = torch.arange(spec.in_features, dtype=torch.int32) // storage.group_size(
        spec.in_features
    )
    if storage.stored.reordered or not torch.equal(group_I, in_order):
        kept["group"] = group_I
    return kept


def _words(
    packed: torch.Tensor, places: tuple[int, ...] = tuple(range(_PER_INT32))
) -> torch.Tensor:
    """Return 4-bit values uint8 [rows, 8 · words] of int32 [rows, words]; value n lies at 4 · places[n]."""
    if packed.dtype is not torch.int32 or packed.ndim != 2:
        raise _Mismatch(f"came in words of {packed.dtype}, and int32 is what is read")
    shifts = torch.tensor([4 * place for place in places], dtype=torch.int32)
    values = (packed.unsqueeze(-1) >> shifts) & 15
    return values.to(torch.uint8).flatten(1)
