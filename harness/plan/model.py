"""A model known only by its Hugging Face config: built on the meta device, its blocks planned layers.

Reads no weight and needs no network, no GPU, no PEFT and no bitsandbytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from harness.base.attention import most_positions
from harness.base.blocks import block_linears
from harness.base.build import Base
from harness.base.experts import expose_experts
from harness.base.model_config import prepared_config, read_config, refusing
from harness.base.prequantized import StoredWeights, check_stored
from harness.base.quick_imports import quick_imports, quiet_libraries
from harness.base.source import ModelSource
from harness.base.storage import Storage, storage_of
from harness.base.targets import LinearSpec
from harness.config.schema import ModelConfig, QuantConfig, QuantFormat
from harness.engine.reference.grouped_lora import PackedLora
from harness.engine.rows import AdapterGroup, RowPlan
from harness.engine.shared_base import SharedBase
from harness.plan.outline import find_blocks, module_outlines, per_block_fields
from harness.plan.settings import shape_config

META = torch.device("meta")


class AdaptedLayer(nn.Module):
    """What PEFT's layer is to `PackedLora`; its `base_layer`, of the planned storage, has no memory."""

    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Linear, layer_index: int, plan: RowPlan) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._packed = PackedLora(self, layer_index, plan)

    def expect(self, groups: Sequence[AdapterGroup]) -> None:
        """Measure the frozen rows beforehand, as every pass but the first finds them."""
        self._packed.frozen_rows.measure(groups)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the frozen product with the adapters' updates."""
        return self._packed(x, *args, **kwargs)


class PlannedModel:
    """A model without weights. One object serves predictions for many configurations."""

    def __init__(
        self,
        config: Any,
        source: ModelSource,
        model: ModelConfig,
        stored: StoredWeights | None = None,
    ) -> None:
        """`config`: the transformers config, prepared; `stored`: how the weights came, if quantized."""
        self.name = source.name
        self.stored = stored
        self.max_positions, self.beyond = most_positions(config)
        self.model = _empty_model(config, source, model)
        self.linears: tuple[LinearSpec, ...] = tuple(block_linears(self.model))
        self.outline = module_outlines(self.model, self.linears)
        self.blocks = find_blocks(self.model, self.linears)
        self.shared = SharedBase(
            Base(
                model=self.model,
                source=source,
                storage=storage_of(QuantConfig(format=QuantFormat.none)),
                linears=self.linears,
                device=META,
            )
        )
        self._used: QuantConfig | None = None
        self.layers = list(self._planned_layers())
        self.model.config.use_cache = False
        self.model.requires_grad_(False)
        self.model.eval()

    @classmethod
    def from_shape(cls, name: str, model: ModelConfig) -> Self:
        """Return the model of a shape in conf/shape/. Raises RequestError for an unknown name."""
        fields = shape_config(name)
        source = ModelSource(name=name, directory=None, revision=None)
        quiet_libraries()
        with quick_imports():
            from transformers import AutoConfig

            config = AutoConfig.for_model(fields.pop("model_type"), **fields)
            return cls(prepared_config(config, model), source, model)

    @classmethod
    def from_source(cls, source: ModelSource, model: ModelConfig) -> Self:
        """Return the model of a directory or a Hugging Face id, of which only config.json is read.

        Raises RequestError if there is none that transformers understands.
        """
        quiet_libraries()
        with quick_imports():
            described = read_config(source, model)
            return cls(described.config, source, model, described.stored)

    @property
    def num_blocks(self) -> int:
        """Repeated blocks of the model."""
        return len(self.blocks)

    @property
    def storage(self) -> Storage:
        """The storage that is planned for."""
        return self.shared.base.storage

    def use(self, quant: QuantConfig) -> None:
        """Plan for this storage from now on."""
        if quant == self._used:
            return
        check_stored(self.name, quant, self.stored)
        self._used = quant
        storage = self.shared.base.storage = storage_of(quant, self.stored)
        for spec, layer in zip(self.linears, self.layers, strict=True):
            bias = layer.base_layer.bias
            bias = None if bias is None else bias.to(storage.dtype)
            layer.base_layer = storage.restore(
                storage.outline(spec), spec.in_features, spec.out_features, bias
            )
        inside = {id(own) for layer in self.layers for own in layer.base_layer.parameters()}
        for parameter in self.model.parameters():
            if id(parameter) not in inside:
                parameter.data = parameter.data.to(storage.dtype)
        # Tables that all layers share are there before a pass, as in every pass but the first.
        first = self.linears[0]
        shape = (first.out_features, first.in_features)
        storage.decode(storage.outline(first), shape, storage.dtype)

    @contextmanager
    def only_blocks(self, indices: Sequence[int]) -> Iterator[None]:
        """Within this context the model consists of these blocks alone, in ascending order."""
        parent_name, _, own_name = self.blocks.name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        whole = getattr(parent, own_name)
        fields = per_block_fields(self.model.config, len(whole))
        setattr(parent, own_name, nn.ModuleList(whole[index] for index in indices))
        for name, values in fields.items():
            object.__setattr__(self.model.config, name, [values[index] for index in indices])
        try:
            yield
        finally:
            setattr(parent, own_name, whole)
            for name, values in fields.items():
                object.__setattr__(self.model.config, name, values)

    def _planned_layers(self) -> Iterator[AdaptedLayer]:
        for index, spec in enumerate(self.linears):
            real: Any = self.model.get_submodule(spec.name)
            bias = None if real.bias is None else real.bias.data
            frozen = self.storage.restore(
                self.storage.outline(spec), spec.in_features, spec.out_features, bias
            )
            layer = AdaptedLayer(frozen, index, self.shared.plan)
            self.model.set_submodule(spec.name, layer)
            yield layer


def _empty_model(config: Any, source: ModelSource, model: ModelConfig) -> Any:
    """Return the model with parameters and buffers on the meta device."""
    from transformers import AutoModelForCausalLM

    with refusing(source), META:
        empty: Any = AutoModelForCausalLM.from_config(
            config, trust_remote_code=model.trust_remote_code
        )
    expose_experts(empty)
    return empty
