"""A dense model as a GGUF file, for llama.cpp and what is built on it: shape, tensors, tokenizer, template.

Follows llama.cpp's own conversion (convert_hf_to_gguf.py) for the architectures below; the package `gguf`
names the tensors and packs them.
"""

import json
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch

from harness.errors import RequestError
from harness.export.k_quants import SUPER_BLOCK, KType, packed


class GgufType(Enum):
    """How the matrices of a GGUF file are stored; what has one row is always float32."""

    f16 = "f16"
    q8_0 = "q8_0"
    """8 bits in blocks of 32 with a scale each: 8.5 bits a weight."""
    q4_0 = "q4_0"
    """4 bits in blocks of 32, 4.5 bits a weight; embeddings and head in q8_0."""
    q4_k_m = "q4_k_m"
    """llama.cpp's mixture: Q4_K, and Q6_K for the head and for half of the values and FFN outputs."""


ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2"}
"""Model types of transformers that can be written, and what GGUF calls them."""
_PERMUTED = ("llama", "mistral")
_BLOCK = 32


def check_writable(config: Any, tokenizer: Any) -> None:
    """Refuse a model that would not be the same in GGUF. Raises RequestError."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise RequestError(
            "GGUF files are written by the package gguf; pip install 'qlora-harness[gguf]'"
        ) from None
    if config.model_type not in ARCHITECTURES:
        raise RequestError(
            f"a model of type {config.model_type} cannot be written as GGUF yet; "
            f"{', '.join(ARCHITECTURES)} can"
        )
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise RequestError(
            f"rope_type={rope['rope_type']} cannot be written as GGUF yet; plain rotary positions can"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        raise RequestError(
            f"llama.cpp would pass over this model's sliding window of {window} tokens"
        )
    _tokenizer_kind(tokenizer)


def write_gguf(
    model: Any, tokenizer: Any, path: Path, kind: GgufType, *, name: str
) -> Counter[str]:
    """Write a dense model; `check_writable` has had nothing against it. Returns matrices by GGML type."""
    import gguf

    config = model.config
    arch = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _add_shape(writer, config, kind, name)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    matrices: Counter[str] = Counter()
    for hf_name, tensor in model.named_parameters():  # a tied head once, as the embeddings
        called = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise RequestError(f"GGUF has no name for {hf_name} of a {config.model_type} model")
        if config.model_type in _PERMUTED:
            tensor = _permuted(hf_name, tensor, config)
        stored = "F32" if tensor.ndim == 1 else _storage(called, tensor.shape[-1], kind, config)
        raw = gguf.GGMLQuantizationType[stored]
        writer.add_tensor(called, _packed(tensor.detach(), stored), raw_dtype=raw)
        matrices[stored] += tensor.ndim > 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return +matrices


def _permuted(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Return q and k with the pairs of their rotation beside each other, as Meta's own Llama has them.

    transformers rotates the first half of a head against the second.
    """
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if heads is None:
        return tensor
    rest = tensor.shape[1:]
    return tensor.reshape(heads, 2, -1, *rest).swapaxes(1, 2).reshape(tensor.shape)


def _storage(name: str, row: int, kind: GgufType, config: Any) -> str:
    """Return the GGML type of a matrix with rows of so many weights."""
    match kind:
        case GgufType.f16:
            wanted = "F16"
        case GgufType.q8_0:
            wanted = "Q8_0"
        case GgufType.q4_0:
            wanted = "Q8_0" if name.startswith(("token_embd", "output")) else "Q4_0"
        case GgufType.q4_k_m:
            wanted = _of_mixture(name, config)
            if row % SUPER_BLOCK:
                wanted = _WITHOUT_SUPER_BLOCKS[wanted]
        case unknown:
            assert_never(unknown)
    return "F16" if row % _BLOCK else wanted


_WITHOUT_SUPER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp stores a matrix in whose rows are no multiple of 256."""
_OF_70B = 80


def _of_mixture(name: str, config: Any) -> str:
    """Return a matrix's type in Q4_K_M, as llama.cpp's llama_tensor_get_type has it (src/llama-quant.cpp).

    The first and the last eighth of the blocks have more bits for values and FFN outputs, and of the others
    every third; in a model of 80 blocks with shared values these have 5 at least.
    """
    blocks = config.num_hidden_layers
    if name == "output.weight" or (name == "token_embd.weight" and config.tie_word_embeddings):
        return "Q6_K"
    _, _, part = name.partition(".")
    if not name.startswith("blk.") or not part.endswith(("attn_v.weight", "ffn_down.weight")):
        return "Q4_K"
    block = int(part.partition(".")[0])
    if block < blocks // 8 or block >= 7 * blocks // 8 or (block - blocks // 8) % 3 == 2:
        return "Q6_K"
    shares = config.num_key_value_heads != config.num_attention_heads
    return "Q5_K" if part.endswith("attn_v.weight") and blocks == _OF_70B and shares else "Q4_K"


def _packed(tensor: torch.Tensor, stored: str) -> np.ndarray:
    """Return a tensor's bytes in a GGML type, K types by ourselves and the others by the package gguf."""
    import gguf

    if stored in KType.__members__:
        return packed(tensor, KType[stored])
    return gguf.quants.quantize(tensor.float().cpu().numpy(), gguf.GGMLQuantizationType[stored])


def _add_shape(writer: Any, config: Any, kind: GgufType, name: str) -> None:
    import gguf

    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    rope = config.rope_parameters or {}
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    file_types = gguf.LlamaFileType
    writer.add_file_type(
        {
            GgufType.f16: file_types.MOSTLY_F16,
            GgufType.q8_0: file_types.MOSTLY_Q8_0,
            GgufType.q4_0: file_types.MOSTLY_Q4_0,
            GgufType.q4_k_m: file_types.MOSTLY_Q4_K_M,
        }[kind]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


# Tokenizer ---------------------------------------------------------------------------------------


def _tokenizer_kind(tokenizer: Any) -> str:
    """Return `gpt2` for byte-level BPE, `llama` for SentencePiece's BPE; RequestError for others."""
    tree = _tokenizer_tree(tokenizer)
    if tree["model"].get("type") == "BPE" and not tree["model"].get("byte_fallback"):
        _pre_tokenizer(tree)
        return "gpt2"
    if tree["model"].get("type") == "BPE":
        return "llama"
    raise RequestError(
        f"a tokenizer of kind {tree['model'].get('type')} cannot be written as GGUF yet; BPE can"
    )


def _tokenizer_tree(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RequestError(
            "this model's tokenizer has no tokenizer.json, which a GGUF file is made from"
        )
    return json.loads(backend.to_str())


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
    _GPT2: "gpt-2",
}
"""What llama.cpp calls the patterns by which byte-level tokenizers cut a text into words."""


def _pre_tokenizer(tree: dict[str, Any]) -> str:
    """Return llama.cpp's name of the way a text is cut before its bytes are merged. Raises RequestError."""
    whole = tree.get("pre_tokenizer") or {}
    parts = whole.get("pretokenizers", [whole])
    kinds = [part.get("type") for part in parts]
    digits = [part for part in parts if part.get("type") == "Digits"]
    if kinds == ["Digits", "ByteLevel"] and digits[0].get("individual_digits"):
        return "smollm"
    patterns = [part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if len(patterns) == 1 and patterns[0] in _PRE_TOKENIZERS:
        return _PRE_TOKENIZERS[patterns[0]]
    raise RequestError(
        "the way in which this tokenizer cuts words has no name in llama.cpp that is known here: "
        f"{', '.join(map(str, kinds))}"
    )


def _add_tokenizer(writer: Any, tokenizer: Any, vocabulary: int) -> None:
    tree = _tokenizer_tree(tokenizer)
    kind = _tokenizer_kind(tokenizer)
    tokens, types = _tokens(tree, vocabulary)
    merges = [each if isinstance(each, str) else " ".join(each) for each in tree["model"]["merges"]]
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    if kind == "gpt2":
        writer.add_tokenizer_pre(_pre_tokenizer(tree))
        writer.add_token_merges(merges)
    else:  # SentencePiece merges what scores highest: in the order of the merges
        rank = {merge.replace(" ", "", 1): index for index, merge in enumerate(merges)}
        writer.add_token_scores([-float(rank.get(token, len(merges))) for token in tokens])
        writer.add_add_space_prefix(_puts_a_space_in_front(tree))
    writer.add_token_types(types)
    for name in ("bos", "eos", "pad", "unk"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    begun = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(begun) and begun[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(begun) > 1 and begun[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _puts_a_space_in_front(tree: dict[str, Any]) -> bool:
    whole = [tree.get("normalizer") or {}, tree.get("pre_tokenizer") or {}]
    text = json.dumps(whole)
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text or '"first"' in text


def _tokens(tree: dict[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """Return the text and the GGUF kind of every token; numbers that no token has are filled."""
    import gguf

    kinds = gguf.TokenType
    by_number = {number: token for token, number in tree["model"]["vocab"].items()}
    added = {each["id"]: each for each in tree["added_tokens"]}
    by_number |= {number: each["content"] for number, each in added.items()}
    unknown = tree["model"].get("unk_token")
    tokens, types = [], []
    for number in range(vocabulary):
        token = by_number.get(number)
        if token is None:
            kind = kinds.UNUSED
        elif token == unknown:
            kind = kinds.UNKNOWN
        elif number in added:
            kind = kinds.CONTROL if added[number]["special"] else kinds.USER_DEFINED
        elif tree["model"].get("byte_fallback") and _is_byte(token):
            kind = kinds.BYTE
        else:
            kind = kinds.NORMAL
        tokens.append(f"[PAD{number}]" if token is None else token)
        types.append(kind)
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
