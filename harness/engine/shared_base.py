"""One frozen base with any number of PEFT adapters on it, attached and detached while it stays loaded."""

import copy
import itertools
import warnings
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.base.blocks import uncovered_weights
from harness.base.build import Base, dense_weights
from harness.base.experts import experts_forward
from harness.base.packed_rows import why_apart
from harness.base.storage import TORCH_DTYPES
from harness.base.targets import (
    LinearSpec,
    adapted_layers,
    adapter_shapes,
    shortest_names,
)
from harness.config.lora import alpha_patterns, own_alpha, patterns_for, scaling_of, start_of
from harness.config.resources import BackendName
from harness.config.schema import LoraConfig, LoraInit, LoraMethod
from harness.engine.adapter import MAGNITUDES, Adapter, ParameterLayout, saved_tensors
from harness.engine.backend import choose_backend
from harness.engine.lora_math import Weights
from harness.engine.offload import Offload
from harness.engine.reference.experts_lora import ExpertsLora, initialized, names_in_file
from harness.engine.reference.grouped_lora import PackedLora
from harness.engine.reference.whole_modules import install, whole_module
from harness.engine.rows import AdapterRows, RowPlan
from harness.engine.starts import start_from_dense
from harness.engine.whole_model import WholeModel, load_model, save_model
from harness.measure.memory import BaseSize, base_size
from harness.records.record import Estimate

_PEFT_INIT: dict[LoraInit, bool | str] = {
    LoraInit.default: True,
    LoraInit.gaussian: "gaussian",
    LoraInit.pissa: "pissa",
    LoraInit.olora: "olora",
    LoraInit.loftq: True,  # its A and B are in the file, and plain PEFT has nothing to begin
}


class SharedBase:
    """A base and the adapters on it."""

    def __init__(
        self,
        base: Base,
        *,
        backend: BackendName = BackendName.auto,
        load_peak_bytes: int | None = None,
    ) -> None:
        """`backend`: who computes its passes. Raises RequestError where that one cannot."""
        self.base = base
        self.load_peak_bytes = load_peak_bytes
        self.plan = RowPlan(base.device)
        self._peft: Any = None
        self._count = itertools.count()
        self._index = {spec.name: index for index, spec in enumerate(base.linears)}
        self._lora_layers: dict[str, Any] = {}
        """PEFT's layers by full name; a layer becomes one with the first adapter that wants it."""
        self._of_experts: dict[str, dict[str, Any]] = {}
        """By adapter: PEFT's layers of fused experts by full name, which are no part of the model."""
        self._configs: dict[str, Any] = {}
        """By adapter: PEFT's configuration of it."""
        self._layouts: dict[Hashable, ParameterLayout] = {}
        self._rewritten_for: str | None = None
        """Beginning of the adapters (`start_of`) that the weights have been changed for: PiSSA, OLoRA,
        LoftQ; or that full fine-tuning has changed them."""
        self.untouched_results: dict[str, dict[str, Estimate]] = {}
        """Evaluations of the base without an adapter, by what was evaluated."""
        self._can_recompute = False
        self._offload = Offload()
        self._adapt_experts()
        self.backend = choose_backend(self, backend)

    def _adapt_experts(self) -> None:
        """Let fused experts ask for the updates of the adapters that have rows in a pass."""
        modules: dict[str, dict[str, int]] = {}
        for spec in self.base.linears:
            if spec.experts > 1:
                module, _, own = spec.name.rpartition(".")
                modules.setdefault(module, {})[own] = self._index[spec.name]
        for module, layers in modules.items():
            experts = experts_forward(self.model.get_submodule(module))
            assert experts is not None, module
            experts.updated = ExpertsLora(layers, self.plan).updated

    @cached_property
    def size(self) -> BaseSize:
        """What the base weighs; measured once, before an initialization can rewrite it."""
        return base_size(self.base)

    @cached_property
    def uncovered(self) -> dict[str, int]:
        """Matrices of the blocks that lie in no linear layer, with their sizes."""
        return uncovered_weights(self.model, self.base.linears)

    @cached_property
    def why_apart(self) -> str | None:
        """Why each example has a row of its own; None where several may lie in one."""
        return why_apart(self.model.config)

    @property
    def is_rewritten(self) -> bool:
        """Whether the weights have been changed for adapters, so that no others can use them."""
        return self._rewritten_for is not None

    @property
    def model(self) -> Any:
        """The transformers model itself; adapters act on the rows named by `plan.rows`."""
        return self.base.model

    def attach(self, lora: LoraConfig, seed: int) -> Adapter:
        """Add an adapter initialized by PEFT from `seed`, exactly as it would be on an untouched base."""
        from peft import LoraConfig as PeftLoraConfig
        from peft import PeftModel

        name = f"run{next(self._count)}"
        if lora.trains_all:
            assert not self.is_rewritten, "full fine-tuning begins with the weights as they came"
            return self._attach_whole(name, lora)
        start = start_of(lora) if lora.rewrites_base else None
        assert self._rewritten_for in (None, start), (
            "the weights of this base were changed by another run: by PiSSA, OLoRA, LoftQ or full fine-tuning"
        )
        assert start is None or self.is_rewritten or not self.plan.adapters, (
            "a base is rewritten before the first adapter trains on it"
        )
        adapted = adapted_layers(lora, self.base.linears)
        plain = [spec for spec in adapted if spec.experts == 1]
        names = [spec.name for spec in plain]
        from_dense = lora.init.from_dense
        config = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=own_alpha(lora),  # pyright: ignore[reportArgumentType]  PEFT takes floats
            lora_dropout=lora.dropout,
            target_modules=shortest_names(plain, self.base.linears),
            rank_pattern=patterns_for(lora.rank_pattern or {}, names),
            alpha_pattern=patterns_for(alpha_patterns(lora), names),  # pyright: ignore[reportArgumentType]  floats
            use_rslora=lora.rslora,
            init_lora_weights=True if from_dense else _PEFT_INIT[lora.init],  # pyright: ignore[reportArgumentType]
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base.source.location,
        )
        wholes = self.expect_wholes(lora)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            if plain and self._peft is None:
                self._peft = PeftModel(self.model, config, adapter_name=name)
            elif plain:
                self._add(name, config)
            self._of_experts[name] = {  # as PEFT, which draws for layers first
                spec.name: initialized(spec, config, name) for spec in adapted if spec.experts > 1
            }
            if lora.method is LoraMethod.qalora:
                self._pool_inputs(name, plain, lora)
        self._configs[name] = config
        self._pack_layers()
        if from_dense:
            config.init_lora_weights = _PEFT_INIT[lora.init]  # pyright: ignore[reportAttributeAccessIssue]
            self._start_from_dense(name, lora, writes=start != self._rewritten_for)
            if start != self._rewritten_for:
                self._rewritten_for = start
                self.backend.base_was_rewritten()
        adapter = self._flattened(name, lora, wholes)
        # PEFT would look at weights for DoRA, and copy modules; here the file alone is told.
        config.use_dora = lora.method is LoraMethod.dora
        config.modules_to_save = [name.rpartition(".")[2] for name, _ in wholes.values()] or None
        self.plan.add(adapter)
        return adapter

    def expect_wholes(self, lora: LoraConfig) -> dict[str, tuple[str, tuple[int, int]]]:
        """Be ready for runs that train the embeddings or the head too; return, for each of these, its name in
        the model and its shape."""
        found = {}
        for part in sorted(lora.train_also):
            name, module = whole_module(self.model, part)
            install(module, part, self.plan)
            rows, columns = module.weight.shape
            found[part] = name, (rows, columns)
        return found

    def _pool_inputs(self, name: str, adapted: Sequence[LinearSpec], lora: LoraConfig) -> None:
        """Let PEFT draw an A that sees groups of inputs; it has QA-LoRA for the layers of GPTQ alone."""
        from peft import LoraConfig as PeftLoraConfig
        from peft.tuners.lora.variants import QALoraLinearVariant

        config = PeftLoraConfig(qalora_group_size=lora.qalora_group_size)
        for spec in adapted:
            QALoraLinearVariant.init(self.model.get_submodule(spec.name), name, config)

    def _start_from_dense(self, name: str, lora: LoraConfig, *, writes: bool) -> None:
        """Initialize an adapter from the dense weights, and store what it leaves of them, if that `writes`.

        The weights are those of the model as it came, one layer at a time, and are rounded once: a rounded
        base has lost what these initializations look for.
        """
        for layer_name, weight_OI in dense_weights(self.base):
            layer = self._lora_layers.get(layer_name)
            if layer is None or name not in layer.lora_A:
                continue
            dense_OI = weight_OI.to(self.base.device, torch.float32, copy=True)
            remaining_OI = start_from_dense(layer, name, dense_OI, lora, self.base.storage)
            if writes and remaining_OI is not None:
                self.base.storage.overwrite(layer.base_layer, remaining_OI)
                _packed(layer).frozen_rows.forget()

    def _attach_whole(self, name: str, lora: LoraConfig) -> Adapter:
        """Let all parameters of the model be trained."""
        adapted_layers(lora, self.base.linears)  # refuses what cannot be
        assert self.backend.name is BackendName.reference, "other backends compute a frozen base"
        _ = self.size  # measured before the weights lie in one tensor
        whole = WholeModel.of(name, self.model, self.plan)
        self._rewritten_for = f"all of it by {name}"
        self.plan.add(whole)
        return whole

    def _add(self, name: str, config: Any) -> None:
        """Let PEFT add an adapter, or nothing of it if there is no memory for all."""
        try:
            self._peft.add_adapter(name, config)
        except BaseException:
            if name in self._peft.peft_config:
                self._peft.delete_adapter(name)
            raise

    def detach(self, adapter: Adapter) -> None:
        """Remove an adapter; the others are not touched."""
        if isinstance(adapter, WholeModel):
            adapter.release()
            self.plan.remove(adapter.name)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._knows(adapter.name):
                self._peft.delete_adapter(adapter.name)
        del self._of_experts[adapter.name], self._configs[adapter.name]
        self.plan.remove(adapter.name)

    def _knows(self, name: str) -> bool:
        """Say whether PEFT's model has an adapter: not one of fused experts alone."""
        return self._peft is not None and name in self._peft.peft_config

    def only(self, adapter: Adapter | None) -> AbstractContextManager[None]:
        """Within this context all rows belong to one adapter without dropout, or to the base alone."""
        own = [] if adapter is None else [AdapterRows(adapter=adapter.name, dropout_key=None)]
        return self.plan.rows(own)

    def side_by_side(self, adapters: Sequence[Adapter], rows: int) -> AbstractContextManager[None]:
        """Within this context each adapter has so many rows of a batch, in their order, without dropout."""
        adapter_rows = [
            AdapterRows(adapter=a.name, start=i * rows, stop=(i + 1) * rows, dropout_key=None)
            for i, a in enumerate(adapters)
        ]
        return self.plan.rows(adapter_rows)

    def recompute_activations(self, wanted: bool, *, offload: bool = False) -> None:
        """Switch gradient checkpointing for the passes to come; `offload`: blocks' inputs wait on the host.

        transformers' layers recompute only in training mode, in which nothing else differs: the base's
        dropouts are off and the adapters' are ours.
        """
        if wanted and not self._can_recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self._offload.install(self.model)
            self._can_recompute = True
        self._offload.is_used = offload
        if self.model.training != wanted:
            self.model.train(wanted)

    def state(self, adapter: Adapter) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors under PEFT's file names (without the adapter's own name)."""
        from peft import get_peft_model_state_dict

        tensors: dict[str, torch.Tensor] = {}
        if self._knows(adapter.name):
            tensors = get_peft_model_state_dict(
                self._peft, adapter_name=adapter.name, save_embedding_layers=False
            )
        for part in adapter.layout.wholes:
            name, _ = whole_module(self.model, part)
            tensors[f"base_model.model.{name}.weight"] = adapter.parameters[f"{name}.weight"]
        for spec in self.base.linears:
            if (
                own := adapter.parameters.get(f"{spec.name}.{MAGNITUDES}.{adapter.name}.weight")
            ) is not None:
                tensors[f"base_model.model.{spec.name}.{MAGNITUDES}"] = own
        named = names_in_file(self._adapted_experts(adapter))
        for name, layer in self._of_experts[adapter.name].items():
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)[adapter.name].weight
                tensors[f"{named[name]}.{part}.weight"] = weight
        return tensors

    def file_tensors(self, adapter: Adapter) -> dict[str, torch.Tensor]:
        """Return `state` as plain PEFT loads it: A for every input, where QA-LoRA has one for a group of
        them."""
        tensors, layout = self.state(adapter), adapter.layout
        for spec in self.base.linears:
            index, key = self._index[spec.name], f"base_model.model.{spec.name}.lora_A.weight"
            if index in layout and (pooled := layout.shape(index).pooled) > 1:
                a_RI = tensors[key] * (layout.shape(index).inputs / pooled)
                tensors[key] = a_RI.repeat_interleave(pooled, dim=1)
        return tensors

    def _adapted_experts(self, adapter: Adapter) -> list[LinearSpec]:
        of_experts = self._of_experts[adapter.name]
        return [spec for spec in self.base.linears if spec.name in of_experts]

    def save(self, adapter: Adapter, directory: Path) -> None:
        """Write the adapter so that `PeftModel.from_pretrained(base, directory)` loads it.

        Of full fine-tuning the model, so that transformers loads that.
        """
        from safetensors.torch import save_file

        if isinstance(adapter, WholeModel):
            save_model(adapter, self.model, self.base.tokenizer, directory)
            return
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {k: t.detach().cpu().contiguous() for k, t in self.file_tensors(adapter).items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        config = copy.copy(self._configs[adapter.name])
        if experts := self._adapted_experts(adapter):
            config.target_parameters = shortest_names(experts, self.base.linears)
        config.save_pretrained(str(directory))

    def load(self, adapter: Adapter, directory: Path) -> None:
        """Read what `save` has written into an attached adapter; RequestError for another one's file."""
        if isinstance(adapter, WholeModel):
            load_model(adapter, self.model, directory)
            return
        file = directory / "adapter_model.safetensors"
        given = saved_tensors(file, self.file_tensors(adapter), "adapter")
        for key, tensor in self.state(adapter).items():  # views of the flat tensor
            found = given[key]
            if found.shape != tensor.shape:
                # QA-LoRA: a column for each input, equal within a group
                pooled = found.shape[1] // tensor.shape[1]
                found = found[:, ::pooled] / (tensor.shape[1] / pooled)
            tensor.detach().copy_(found)

    def _flattened(
        self, name: str, lora: LoraConfig, wholes: dict[str, tuple[str, tuple[int, int]]]
    ) -> Adapter:
        """Move the parameters that PEFT has just initialized into one flat tensor, and those of `wholes`
        (`expect_wholes`)."""
        of_experts = self._of_experts[name]
        layers = {
            spec.name: of_experts.get(spec.name) or self._lora_layers[spec.name]
            for spec in adapted_layers(lora, self.base.linears)
        }
        shapes = adapter_shapes(lora, self.base.linears)
        key = tuple(shapes.items()), tuple(wholes)
        if key not in self._layouts:
            self._layouts[key] = ParameterLayout(
                {self._index[n]: s for n, s in shapes.items()},
                {part: shape for part, (_, shape) in wholes.items()},
            )
        layout = self._layouts[key]
        flat_P = torch.empty(layout.size, device=self.base.device)
        # PEFT rounds what it draws to the type of the base's weights, where it can see it: of a dense layer.
        begins_in = torch.float32 if lora.init.from_dense else self.base.storage.dtype
        parameters: dict[str, nn.Parameter] = {}
        for part, (module, _) in wholes.items():
            whole = layout.whole(flat_P.unsqueeze(0), part)[0]
            whole.copy_(self.model.get_submodule(module).weight)
            parameters[f"{module}.weight"] = nn.Parameter(whole)
        for layer_name, layer in layers.items():
            index = self._index[layer_name]
            for part, view in (("lora_A", layout.a), ("lora_B", layout.b)):
                parameter = getattr(layer, part)[name].weight
                target = view(flat_P.unsqueeze(0), index)[0]
                parameter.data = target.copy_(parameter.data.to(begins_in))
                parameters[f"{layer_name}.{part}.{name}.weight"] = parameter
            if shapes[layer_name].has_magnitudes:
                magnitude_O = layout.magnitudes(flat_P.unsqueeze(0), index)[0]
                weights = Weights(layer.lora_A[name].weight, layer.lora_B[name].weight)
                rows = _packed(layer).frozen_rows
                magnitude_O.copy_(rows.first_magnitudes(weights, scaling_of(lora, layer_name)))
                parameters[f"{layer_name}.{MAGNITUDES}.{name}.weight"] = nn.Parameter(magnitude_O)
        return Adapter(
            name=name,
            layout=layout,
            flat_P=flat_P,
            parameters=parameters,
            scalings={self._index[n]: scaling_of(lora, n) for n in shapes},
            dropout=lora.dropout,
            compute_dtype=TORCH_DTYPES[lora.compute_dtype],
        )

    def _pack_layers(self) -> None:
        """Give layers that PEFT has just made our forward."""
        from peft.tuners.lora import LoraLayer

        for spec in self.base.linears:
            if spec.name in self._lora_layers:
                continue
            module: Any = self.model.get_submodule(spec.name)
            if isinstance(module, LoraLayer):
                # An attribute of the instance comes before the method of PEFT's class.
                packed: Any = PackedLora(module, self._index[spec.name], self.plan)
                object.__setattr__(module, "forward", packed)
                self._lora_layers[spec.name] = module


def _packed(layer: Any) -> PackedLora:
    """Return our forward of PEFT's layer."""
    return vars(layer)["forward"]
