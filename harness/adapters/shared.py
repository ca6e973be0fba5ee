"""One frozen base with any number of PEFT adapters on it, attached and detached while it stays loaded."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.adapters.packed import PackedLora, RowPlan, Segment
from harness.base.build import Base
from harness.base.formats import redecode_in_compute_type
from harness.base.layout import adapted_layers, shortest_names
from harness.config import LoraConfig, LoraInit
from harness.measure.memory import BaseSize, base_size
from harness.record import Estimate

_PEFT_INIT: dict[LoraInit, bool | str] = {
    LoraInit.default: True,
    LoraInit.gaussian: "gaussian",
    LoraInit.pissa: "pissa",
    LoraInit.olora: "olora",
}


def rewrites_base(lora: LoraConfig) -> bool:
    """Say whether this adapter's initialisation changes the base, so that it must train alone."""
    return lora.init in (LoraInit.pissa, LoraInit.olora)


def lora_alpha(lora: LoraConfig) -> float:
    """Return alpha, given as itself or as a multiple of the rank."""
    if lora.alpha is not None:
        return lora.alpha
    assert lora.alpha_over_rank is not None
    return lora.alpha_over_rank * lora.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One attached adapter: its PEFT name and its float32 parameters, by full name."""

    name: str
    parameters: dict[str, nn.Parameter]

    @property
    def num_parameters(self) -> int:
        """Trainable elements: r (d_in + d_out) for each adapted layer."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameters."""
        return sum(p.numel() * p.element_size() for p in self.parameters.values())


class SharedBase:
    """A base and the adapters on it."""

    def __init__(self, base: Base, load_peak_bytes: int | None = None) -> None:
        self.base = base
        self.load_peak_bytes = load_peak_bytes
        self.plan = RowPlan()
        self._peft: Any = None
        self._count = itertools.count()
        self._index = {spec.name: index for index, spec in enumerate(base.linears)}
        self.is_rewritten = False
        """Whether PiSSA or OLoRA has changed the weights for an adapter: no other can use them."""
        self.untouched_results: dict[str, dict[str, Estimate]] = {}
        """Evaluations of the base without an adapter, by what was evaluated."""
        self._can_recompute = False

    @cached_property
    def size(self) -> BaseSize:
        """What the base weighs; measured once, before an initialisation can rewrite it."""
        return base_size(self.base)

    @property
    def model(self) -> Any:
        """The transformers model itself; adapters act on the rows named by `rows`."""
        return self.base.model

    def attach(self, lora: LoraConfig, seed: int) -> Adapter:
        """Add an adapter initialised by PEFT from `seed`, exactly as it would be on an untouched base."""
        from peft import LoraConfig as PeftLoraConfig
        from peft import PeftModel

        assert not self.is_rewritten, (
            "this base was rewritten by PiSSA or OLoRA for another adapter"
        )
        name = f"run{next(self._count)}"
        adapted = adapted_layers(lora, self.base.linears)
        config = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora_alpha(lora),  # pyright: ignore[reportArgumentType]  PEFT takes floats
            lora_dropout=lora.dropout,
            target_modules=shortest_names(adapted, self.base.linears),
            use_rslora=lora.rslora,
            init_lora_weights=_PEFT_INIT[lora.init],  # pyright: ignore[reportArgumentType]
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base.source.location,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            if self._peft is None:
                self._peft = PeftModel(self.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        if rewrites_base(lora):
            self.is_rewritten = True
            redecode_in_compute_type(self.model, self.base.quant)
        self._pack_layers()
        self._thaw()
        return Adapter(name=name, parameters=self._own_parameters(name))

    def detach(self, adapter: Adapter) -> None:
        """Remove an adapter; the others are not touched."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._peft.delete_adapter(adapter.name)
        self._thaw()

    @contextmanager
    def rows(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Within this context the model's rows belong to the adapters of `segments`."""
        with self.plan.rows(segments):
            yield

    @contextmanager
    def only(self, adapter: Adapter | None) -> Iterator[None]:
        """Within this context all rows belong to one adapter without dropout, or to the base alone."""
        one = () if adapter is None else (_all_rows(adapter.name),)
        with self.plan.rows(one):
            yield

    def recompute_activations(self, wanted: bool) -> None:
        """Switch gradient checkpointing for the forward passes to come.

        transformers' layers recompute only in training mode, in which nothing else differs: the base's
        dropouts are off and the adapters' are ours.
        """
        if wanted and not self._can_recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self._can_recompute = True
        if self.model.training != wanted:
            self.model.train(wanted)

    def state(self, adapter: Adapter) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors under PEFT's file names (without the adapter's own name)."""
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(
            self._peft, adapter_name=adapter.name, save_embedding_layers=False
        )

    def save(self, adapter: Adapter, directory: Path) -> None:
        """Write the adapter so that `PeftModel.from_pretrained(base, directory)` loads it."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        tensors = {key: t.detach().cpu().contiguous() for key, t in self.state(adapter).items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        self._peft.peft_config[adapter.name].save_pretrained(str(directory))

    def _own_parameters(self, name: str) -> dict[str, nn.Parameter]:
        return {
            key: parameter
            for key, parameter in self.model.named_parameters()
            if f".{name}." in key and ".lora_" in key
        }

    def _thaw(self) -> None:
        """Make every adapter trainable: PEFT freezes all but the active one whenever one comes or goes."""
        for key, parameter in self.model.named_parameters():
            if ".lora_" in key:
                parameter.requires_grad_(True)

    def _pack_layers(self) -> None:
        from peft.tuners.lora import LoraLayer

        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer) and not isinstance(
                getattr(module, "forward", None), PackedLora
            ):
                # An attribute of the instance comes before the method of PEFT's class.
                packed: Any = PackedLora(module, self._index[name], self.plan)
                object.__setattr__(module, "forward", packed)


def _all_rows(adapter: str) -> Segment:
    return Segment(adapter=adapter, start=0, stop=0, dropout_key=None)
