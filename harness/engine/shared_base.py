"""One frozen base with any number of PEFT adapters on it, attached and detached while it stays loaded."""

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from harness.base.targets import LinearSpec, adapted_layers, shortest_names
from harness.config.resources import BackendName
from harness.config.schema import LoraConfig, LoraInit
from harness.engine.adapter import Adapter, ParameterLayout, saved_tensors
from harness.engine.backend import choose_backend
from harness.engine.offload import Offload
from harness.engine.reference.backend import ReferenceBackend
from harness.engine.reference.experts_lora import ExpertsLora, initialized, names_in_file
from harness.engine.reference.grouped_lora import PackedLora
from harness.engine.rows import AdapterRows, RowPlan
from harness.engine.whole_model import WholeModel, load_model, save_model
from harness.errors import RequestError
from harness.measure.memory import BaseSize, base_size
from harness.records.record import Estimate

_PEFT_INIT: dict[LoraInit, bool | str] = {
    LoraInit.default: True,
    LoraInit.gaussian: "gaussian",
    LoraInit.pissa: "pissa",
    LoraInit.olora: "olora",
}


def lora_alpha(lora: LoraConfig) -> float:
    """Return alpha, given as itself or as a multiple of the rank."""
    if lora.alpha is not None:
        return lora.alpha
    assert lora.alpha_over_rank is not None
    return lora.alpha_over_rank * lora.rank


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
        self._layouts: dict[tuple[int, tuple[str, ...]], ParameterLayout] = {}
        self.is_rewritten = False
        """Whether PiSSA, OLoRA or full fine-tuning has changed the weights: no other run can use them."""
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
            experts.updates = ExpertsLora(layers, self.plan)

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
    def model(self) -> Any:
        """The transformers model itself; adapters act on the rows named by `rows`."""
        return self.base.model

    def attach(self, lora: LoraConfig, seed: int) -> Adapter:
        """Add an adapter initialized by PEFT from `seed`, exactly as it would be on an untouched base."""
        from peft import LoraConfig as PeftLoraConfig
        from peft import PeftModel

        assert not self.is_rewritten, (
            "the weights of this base were changed by another run: by PiSSA, OLoRA or full fine-tuning"
        )
        name = f"run{next(self._count)}"
        if lora.trains_all:
            return self._attach_whole(name, lora)
        adapted = adapted_layers(lora, self.base.linears)
        plain = [spec for spec in adapted if spec.experts == 1]
        rewrites = lora.init.rewrites_base
        config = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora_alpha(lora),  # pyright: ignore[reportArgumentType]  PEFT takes floats
            lora_dropout=lora.dropout,
            target_modules=shortest_names(plain, self.base.linears),
            use_rslora=lora.rslora,
            init_lora_weights=True if rewrites else _PEFT_INIT[lora.init],  # pyright: ignore[reportArgumentType]
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base.source.location,
        )
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
        self._configs[name] = config
        self._pack_layers()
        if rewrites:
            config.init_lora_weights = _PEFT_INIT[lora.init]  # pyright: ignore[reportAttributeAccessIssue]
            self.is_rewritten = True
            _start_from_dense(self.base, self._lora_layers, name, lora.init)
        adapter = self._flattened(name, lora)
        self.plan.add(adapter)
        return adapter

    def _attach_whole(self, name: str, lora: LoraConfig) -> Adapter:
        """Let all parameters of the model be trained."""
        adapted_layers(lora, self.base.linears)  # refuses what cannot be
        assert isinstance(self.backend, ReferenceBackend), "other backends compute a frozen base"
        _ = self.size  # measured before the weights lie in one tensor
        whole = WholeModel.of(name, self.model, self.plan)
        self.is_rewritten = True
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

    @contextmanager
    def rows(
        self, adapter_rows: Sequence[AdapterRows], places_BT: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Within this context the model's rows belong to those adapters (see `RowPlan.rows`)."""
        with self.plan.rows(adapter_rows, places_BT):
            yield

    @contextmanager
    def only(self, adapter: Adapter | None) -> Iterator[None]:
        """Within this context all rows belong to one adapter without dropout, or to the base alone."""
        one = () if adapter is None else (_all_rows(adapter.name),)
        with self.plan.rows(one):
            yield

    @contextmanager
    def side_by_side(self, adapters: Sequence[Adapter], rows: int) -> Iterator[None]:
        """Within this context each adapter has so many rows of a batch, in their order, without dropout."""
        adapter_rows = [
            AdapterRows(adapter=a.name, start=i * rows, stop=(i + 1) * rows, dropout_key=None)
            for i, a in enumerate(adapters)
        ]
        with self.plan.rows(adapter_rows):
            yield

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
        named = names_in_file(self._adapted_experts(adapter))
        for name, layer in self._of_experts[adapter.name].items():
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)[adapter.name].weight
                tensors[f"{named[name]}.{part}.weight"] = weight
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
        tensors = {key: t.detach().cpu().contiguous() for key, t in self.state(adapter).items()}
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
        given = saved_tensors(directory / "adapter_model.safetensors")
        own = self.state(adapter)
        shapes = [{key: tuple(t.shape) for key, t in each.items()} for each in (own, given)]
        if shapes[0] != shapes[1]:
            different = min(shapes[0].items() ^ shapes[1].items())[0]
            raise RequestError(
                f"{directory} holds another adapter than its record says: {different} is not as it must be"
            )
        for key, tensor in own.items():  # views of the flat tensor
            tensor.detach().copy_(given[key])

    def _flattened(self, name: str, lora: LoraConfig) -> Adapter:
        """Move the parameters that PEFT has just initialized into one flat tensor."""
        of_experts = self._of_experts[name]
        layers = {
            spec.name: of_experts.get(spec.name) or self._lora_layers[spec.name]
            for spec in adapted_layers(lora, self.base.linears)
        }
        key = (lora.rank, tuple(layers))
        if key not in self._layouts:
            dimensions = {
                self._index[spec.name]: spec.adapted
                for spec in self.base.linears
                if spec.name in layers
            }
            self._layouts[key] = ParameterLayout(lora.rank, dimensions)
        layout = self._layouts[key]
        flat_P = torch.empty(layout.size, device=self.base.device)
        # PEFT rounds what it draws to the type of the base's weights, where it can see it: of a dense layer.
        begins_in = torch.float32 if lora.init.rewrites_base else self.base.storage.dtype
        parameters: dict[str, nn.Parameter] = {}
        for layer_name, layer in layers.items():
            index = self._index[layer_name]
            for part, view in (("lora_A", layout.a), ("lora_B", layout.b)):
                parameter = getattr(layer, part)[name].weight
                target = view(flat_P.unsqueeze(0), index)[0]
                parameter.data = target.copy_(parameter.data.to(begins_in))
                parameters[f"{layer_name}.{part}.{name}.weight"] = parameter
        scaling = {layer.scaling[name] for layer in layers.values()}
        assert len(scaling) == 1, scaling
        return Adapter(
            name=name,
            layout=layout,
            flat_P=flat_P,
            parameters=parameters,
            scaling=scaling.pop(),
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


def _all_rows(adapter: str) -> AdapterRows:
    return AdapterRows(adapter=adapter, start=0, stop=0, dropout_key=None)


def _start_from_dense(
    base: Base, lora_layers: Mapping[str, Any], adapter: str, init: LoraInit
) -> None:
    """Let PEFT initialize an adapter from the dense weights, and store what it leaves of them.

    The weights are those of the model as it came, one layer at a time, and are rounded once: a rounded base
    has lost what these initializations look for.
    """
    for name, weight_OI in dense_weights(base):
        layer = lora_layers.get(name)
        if layer is None:
            continue
        packed = layer.base_layer
        layer.base_layer = dense = _dense(weight_OI.to(base.device, torch.float32, copy=True))
        if init is LoraInit.pissa:
            layer.pissa_init(adapter, "pissa")
        else:
            layer.olora_init(adapter)
        layer.base_layer = packed
        base.storage.overwrite(packed, dense.weight.data)


def _dense(weight_OI: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    return linear
