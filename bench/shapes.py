"""Random-weight models of common sizes and random rows: time and memory do not ask what is learnt."""

from dataclasses import dataclass
from typing import Any

import torch

from harness.base.build import Base, freeze
from harness.config.schema import QuantConfig, QuantFormat
from harness.data.rows import NO_LOSS, TokenRows

FORMATS = {
    "none": QuantConfig(format=QuantFormat.none),
    "nf4": QuantConfig(format=QuantFormat.nf4),
    "nf4_dq": QuantConfig(format=QuantFormat.nf4, double_quant=True),
    "int4": QuantConfig(format=QuantFormat.int4),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's dimensions."""

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_size: int | None = None
    """None: hidden / heads."""

    def config(self, **fields: Any) -> Any:
        """Return transformers' configuration; `fields` come on top."""
        from transformers import AutoConfig

        config = AutoConfig.for_model(
            self.model_type,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=4096,
            head_dim=self.head_size or self.hidden // self.heads,
            **fields,
        )
        config._attn_implementation = "sdpa"
        return config

    def base(self, quant: QuantConfig, device: torch.device, **fields: Any) -> Base:
        """Return a frozen base with weights drawn on its device, bfloat16 on a GPU and float32 on a CPU."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        config, before = self.config(**fields), torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
        try:
            with device:
                model = AutoModelForCausalLM.from_config(config)
        finally:
            torch.set_default_dtype(before)
        return freeze(model, quant, device)

    def rows(self, count: int, length: int, loss_share: float = 0.5) -> TokenRows:
        """Return random rows without padding, of each of which the last `loss_share` carries loss."""
        generator = torch.Generator().manual_seed(0)
        ids_NT = torch.randint(3, self.vocabulary, (count, length), generator=generator)
        targets_NT = torch.full_like(ids_NT, NO_LOSS)
        first = round((1 - loss_share) * length)
        targets_NT[:, first:-1] = ids_NT[:, first + 1 :]
        return TokenRows(
            input_ids_NT=ids_NT.int(),
            targets_NT=targets_NT.int(),
            segments_NT=None,
            lengths_N=torch.full((count,), length),
            source_N=torch.arange(count),
        )


SHAPES = {
    "toy": Shape("llama", 64, 192, 2, 4, 2, 1024),  # to try the code
    "0.5B": Shape("llama", 1280, 3456, 22, 20, 4, 32000),
    "1.5B": Shape("llama", 2048, 5632, 28, 32, 8, 32000),
    "7B": Shape("llama", 4096, 11008, 32, 32, 32, 32000),
    "qwen3_0.6b": Shape("qwen3", 1024, 3072, 28, 16, 8, 151936, 128),
    "qwen3_1.7b": Shape("qwen3", 2048, 6144, 28, 16, 8, 151936, 128),
    "qwen3_8b": Shape("qwen3", 4096, 12288, 36, 32, 8, 151936, 128),
    "gemma3_1b": Shape("gemma3_text", 1152, 6912, 26, 4, 1, 262144, 256),
    "phi3_mini": Shape("phi3", 3072, 8192, 32, 32, 32, 32064),
}
