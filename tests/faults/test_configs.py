"""config.json files as they lie on the hub, and as none should: a plan or a sentence, never a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import dispatch
from tests.random_models import save_byte_tokenizer

pytestmark = pytest.mark.faults
LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
CONFIGS: dict[str, Any] = {
    "Llama 3.1's rotations": LLAMA
    | {
        "rope_scaling": ROPE | {"original_max_position_embeddings": 8192},
        "torch_dtype": "bfloat16",
    },
    "DeepSeek V3 in FP8, with code": {
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "model_type": "deepseek_v3",
        "quantization_config": {"fmt": "e4m3", "quant_method": "fp8"},
    },
    "gpt-oss in MXFP4": {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
    "NVFP4": LLAMA
    | {
        "quantization_config": {
            "format": "nvfp4-pack-quantized",
            "quant_method": "compressed-tensors",
        }
    },
    "BitNet": {"model_type": "bitnet", "quantization_config": {"quant_method": "bitnet"}},
    "no model type": {"hidden_size": 64},
    "an unknown model type": {"model_type": "made_up_9000"},
    "code of its own": {
        "model_type": "made_up",
        "auto_map": {"AutoConfig": "configuration_x.XConfig"},
    },
    "T5": {"model_type": "t5", "d_model": 64},
    "BERT": {"model_type": "bert"},
    "Mamba, which reads weights around its layers": {
        "model_type": "mamba",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 300,
    },
    "Jamba": {"model_type": "jamba", **{k: v for k, v in LLAMA.items() if k != "model_type"}},
    "LLaVA": {"model_type": "llava", "text_config": LLAMA},
    "AWQ in the text part": {
        "model_type": "qwen2_vl",
        "text_config": {
            "model_type": "qwen2_vl_text",
            "quantization_config": {"quant_method": "awq", "bits": 4},
        },
    },
    "no quantization, said so": LLAMA | {"quantization_config": None},
    "heads that do not divide": LLAMA | {"num_attention_heads": 5},
    "a size that is a word": LLAMA | {"hidden_size": "64"},
    "a size that is none": LLAMA | {"hidden_size": None},
    "fewer layers than none": LLAMA | {"num_hidden_layers": -1},
    "no layers": LLAMA | {"num_hidden_layers": 0},
    "a list": [1, 2],
    "a number": 3,
    "rotations that are a list": LLAMA | {"rope_scaling": [1]},
    "an unknown activation": LLAMA | {"hidden_act": "nope"},
    "an unknown type": LLAMA | {"torch_dtype": "int3"},
    "another attention": LLAMA | {"attn_implementation": "flash_attention_3"},
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_is_planned_or_refused_in_a_sentence(what: str, tmp_path: Path, capsys: Any):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[what]))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    save_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[what]))
    code = dispatch(["plan", f"model={tmp_path}", "plan.length=16", "lora.rank=1"])
    told = capsys.readouterr().err
    assert code in (0, 2), told  # a traceback is exit code 70, with a log of it
    assert code == 0 or told.strip().splitlines()[-1].startswith("harness: ")
    out = f"paths.out={tmp_path / 'out'}"
    code = dispatch(["run", f"model={tmp_path}", "tracker=none", "lora.rank=1", out])
    told = capsys.readouterr().err
    assert code == 2, told  # its weights are none
    assert told.strip().splitlines()[-1].startswith("harness: ")
