"""Captured steps: the adapters of a cohort in seats, a pass and an optimizer step as one replay each.

A pass of a new key is computed as it is and captured behind that; from then on it is replayed, whoever
sits in the seats. Losses and norms come back through pinned memory; meanwhile the host lays out the rows
of the next step. On a CPU, where nothing can be captured, the same body runs as it is: tests compare it
with the reference there.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from harness.base.attention import AttentionKind, UnknownAttention, attention_of
from harness.base.build import Base
from harness.config.resources import BackendName
from harness.config.schema import FloatType, LoraMethod, OptimizerName, RunConfig
from harness.engine.adapter import Adapter
from harness.engine.cuda import ops
from harness.engine.cuda.decoding import Decoder, DecodingSize, cache_bytes
from harness.engine.cuda.llama_pass import KNOWN, LlamaPass, activation_of
from harness.engine.cuda.seats import Moments, Seats, seats_for
from harness.engine.cuda.staging import PassKey, stage
from harness.engine.micro_step import Work
from harness.engine.reference.backend import ReferenceBackend

if TYPE_CHECKING:
    from harness.engine.shared_base import SharedBase

MOST_GRAPHS = 24
"""Captured passes that are kept; the least recently used one goes."""
_CACHE_BYTES = 2**31
"""Keys and values of adapters that are decoded together; one adapter may always keep its own."""
_STAGES = 3
"""Host buffers in turn: one is filled while those before it may still be copied."""


def why_not_cuda(base: Base) -> str | None:
    """Return why a base cannot have captured steps, None where it can."""
    if base.device.type != "cuda":
        return f"the base lies on {base.device}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    return why_not_this_model(base)


def why_not_this_model(base: Base) -> str | None:
    """Return why the pass cannot compute a base's model, on whichever device; None where it can."""
    model = base.model
    kind = type(model).__name__
    if kind not in KNOWN:
        return f"it computes {', '.join(KNOWN)}, and this is {kind}"
    if base.processes > 1:
        return f"the base is divided among {base.processes} processes"
    config: Any = model.config
    try:
        activation_of(config)
    except ValueError as unknown:
        return str(unknown)
    if getattr(config, "final_logit_softcapping", None) is not None:
        return "its logits are capped"
    if getattr(config, "resid_pdrop", 0.0):
        return "it drops a part of what each block adds while it trains"
    attention = attention_of(config)
    if isinstance(attention, UnknownAttention):
        return f"it cannot be told how the model attends: {attention.reason}"
    if attention.sinks or attention.soft_cap or any(layer.chunk for layer in attention.layers):
        return "its attention has chunks, sinks or a cap"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_kind = [each for each in rope.values() if isinstance(each, dict)] or [rope]
    for each in by_kind:
        if each.get("partial_rotary_factor", 1.0) != 1.0:
            return "it rotates a part of each head"
        if (kind := each.get("rope_type", "default")) in ("dynamic", "longrope"):
            return f"its rotations depend on the length of a row (rope_type={kind})"
    if base.device.type == "cpu":
        return None
    if base.quant.compute_dtype is FloatType.float32:
        return "attention of several lengths takes 16 bits, and quant.compute_dtype is float32"
    if model.model.layers[0].self_attn.head_dim % 8:
        return "heads of a size that is no multiple of 8"
    if base.device.type == "cuda":
        capability = torch.cuda.get_device_capability(base.device)
        if capability < (8, 0):
            return f"its attention needs compute capability 8.0, and this GPU has {capability}"
    return None


def why_not_captured(config: RunConfig) -> str | None:
    """Return why seats cannot hold a run, in words for its record; None where they can."""
    lora, optim = config.lora, config.optim
    if lora.trains_all:
        return "lora=none trains a whole model"
    if optim.name is not OptimizerName.adamw:
        return f"optim={optim.name.value} keeps its state tensor by tensor"
    if lora.compute_dtype is not config.quant.compute_dtype:
        return f"lora.compute_dtype={lora.compute_dtype.value} is not that of the base"
    if lora.method is not LoraMethod.lora:
        return f"lora.method={lora.method.value} is not in the captured pass"
    if lora.train_also:
        return "lora.train_also is not in the captured pass"
    if optim.offload_activations:
        return "optim.offload_activations goes to the host within a pass, and captured steps stay on the GPU"
    if optim.neftune_alpha is not None:
        return "optim.neftune_alpha is not in the captured pass"
    follows = lora.alpha_over_rank is not None and not lora.rslora
    if lora.alpha_pattern or (lora.rank_pattern and not follows):
        return "its layers have several scalings, and a seat has one"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An optimizer step that a run is to make: its gradient is complete."""

    adapter: Adapter
    number: int
    """Of this step, from 1."""
    rate_a: float
    rate_b: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    max_grad_norm: float | None
    loss_scale: float

    def settings(self) -> list[float]:
        """Return what the device is told of the step: `ops.SETTINGS` but for the last, the limit, and what
        brings back a gradient that is scaled."""
        correction1, correction2 = 1 - self.beta1**self.number, 1 - self.beta2**self.number
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        return [
            self.rate_a, self.rate_b, self.beta1, self.beta2, 1 - self.beta1, 1 - self.beta2,
            self.epsilon, self.weight_decay, correction1, correction2, _scaling(self.adapter), limit,
            1 / self.loss_scale,
        ]  # fmt: skip


class StepNumbers:
    """Loss and gradient norm of a step that has been given to the device."""

    def __init__(self, rows: torch.Tensor, row: int, done: Any) -> None:
        self._rows, self._row, self._done = rows, row, done

    def read(self) -> tuple[float, float]:
        """Return both, waiting for the device where it has not come to it."""
        if self._done is not None:
            self._done.synchronize()
        loss, norm = self._rows[self._row].tolist()
        return loss, norm


class CudaBackend(ReferenceBackend):
    """Seats, captured passes and captured optimizer steps over one base.

    `gradients` are the reference's, for who moves adapters itself. Weights are decoded in every pass, once
    for the rows of all runs, from packed tensors that stay where they are: nothing is kept.
    """

    name = BackendName.cuda
    tolerance = 2e-3
    """Relative difference of a loss from the reference's in one step in 16 bits; in float32 they agree to
    rounding."""

    def __init__(self, shared: "SharedBase") -> None:
        super().__init__(shared)
        self._device = shared.base.device
        model: Any = shared.model
        names = [spec.name for spec in shared.base.linears]
        self._pass = LlamaPass(model, names, windows_of(model))
        self._made_seats: Seats | None = None
        self._seated: dict[str, int] = {}
        """Adapter's name -> seat."""
        self._scaling: list[float] = []
        self._graphs: OrderedDict[tuple[PassKey, bool], _Captured] = OrderedDict()
        """Passes by their kind and whether they score."""
        self._update: _Update | None = None
        self._decoder: tuple[Any, Decoder] | None = None
        """Made for (seats, size, stop tokens)."""
        self._pool: Any = None
        self._stream: Any = None
        if self._device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = _capture_stream(self._device)

    # Seats -----------------------------------------------------------------------------------------

    @property
    def _seats(self) -> Seats:
        assert self._made_seats is not None, "nobody has a seat"
        return self._made_seats

    def sit(self, adapter: Adapter, moments: Moments | None) -> None:
        """Give an adapter a seat; the buffers grow where there is none, or none that is large enough."""
        if adapter.name in self._seated:
            return
        if self._made_seats is None or not self._has_room(adapter):
            self._grow(adapter)
        taken = set(self._seated.values())
        seat = next(number for number in range(self._seats.count) if number not in taken)
        self._seats.put(seat, adapter, _scaling(adapter), moments)
        self._seated[adapter.name] = seat

    def is_seated(self, adapter: Adapter) -> bool:
        """Say whether an adapter has a seat: then what is newest of it is there."""
        return adapter.name in self._seated

    def take(self, adapter: Adapter) -> Moments:
        """Bring a seated adapter up to date, and return its moments; it keeps its seat."""
        return self._seats.take(self._seated[adapter.name], adapter)

    def leave(self, adapter: Adapter) -> None:
        """Free an adapter's seat; what is in it is lost."""
        self._seated.pop(adapter.name, None)

    def _has_room(self, adapter: Adapter) -> bool:
        return len(self._seated) < self._seats.count and self._seats.layout.holds(adapter)

    def _grow(self, adapter: Adapter) -> None:
        """Make buffers for those who sit and one more; captured passes go with the old ones.

        What sits waits on the host: old and new buffers side by side would be a peak that no step has.
        """
        adapters = [self._shared.plan.adapters[name] for name in self._seated]
        held: dict[str, Moments] = {}
        begun: dict[str, tuple[float, torch.Tensor]] = {}
        for each in adapters:
            held[each.name] = self.take(each).on_host()
            loss, gradient_P = self._begun(each)
            begun[each.name] = loss, gradient_P.cpu()
            del gradient_P
        everybody = [*adapters, adapter]
        layers = {layer for each in everybody for layer in each.layout.layers}
        rank = max(each.layout.rank for each in everybody)
        count = seats_for(len(everybody))
        if self._made_seats is not None:
            layers |= {layer for place in self._seats.layout.places for layer in place}
            rank = max(rank, self._seats.layout.rank)
            count = max(count, self._seats.count)
        self._graphs.clear()
        self._update = self._made_seats = self._decoder = None
        layout = self._pass.seat_layout(layers, rank)
        dtype = self._shared.model.get_output_embeddings().weight.dtype
        self._made_seats = Seats(layout, count, self._device, dtype)
        for number, each in enumerate(adapters):
            self._seats.put(number, each, _scaling(each), held[each.name])
            self._seats.resume(number, each, *begun[each.name])
            self._seated[each.name] = number

    # Steps -----------------------------------------------------------------------------------------

    def add_pass(self, work: Sequence[Work]) -> bool:
        """Add one micro-batch of each run to its gradient and loss; say whether it was a replay."""
        _, key, words = self._staged(work)
        is_new = (key, False) not in self._graphs
        self._captured(key, scores=False).run(words)
        return not is_new

    def replay(self, work: Sequence[Work]) -> bool:
        """Add one micro-batch of each run if such a pass was captured before; say whether it was."""
        _, key, words = self._staged(work)
        if (key, False) not in self._graphs:
            return False
        self._captured(key, scores=False).run(words)
        return True

    def score(self, work: Sequence[Work]) -> list[torch.Tensor]:
        """Return for each run what an evaluation asks of its batch, [2, M]: the cross-entropy of every
        position that carries loss, in order, and 1.0 where the most likely token is the right one."""
        numbers, key, words = self._staged(work)
        captured = self._captured(key, scores=True)
        captured.run(words)
        assert captured.scores_2M is not None
        in_order = sorted(range(len(work)), key=numbers.__getitem__)
        counts = [work[index].batch.num_loss_tokens for index in in_order]
        parts = captured.scores_2M[:, : sum(counts)].clone().split(counts, dim=1)
        return [part for _, part in sorted(zip(in_order, parts, strict=True), key=lambda p: p[0])]

    def answers(
        self,
        adapters: Sequence[Adapter],
        prompts: Sequence[Sequence[int]],
        size: DecodingSize,
        stop_ids: Sequence[int],
    ) -> list[list[list[int]]]:
        """Return the greedy continuation of each prompt by each seated adapter, after a stop token anything.

        The decoder of one size and of these adapters is kept until `end_decoding`.
        """
        pairs = sorted((self._seated[each.name], number) for number, each in enumerate(adapters))
        wanted = (tuple(seat for seat, _ in pairs), size, tuple(stop_ids))
        if self._decoder is None or self._decoder[0] != wanted:
            self._decoder = None  # its cache goes before another's is made
            made = Decoder(self, self._pass, self._seats, wanted[0], size, stop_ids)
            self._decoder = wanted, made
        found = self._decoder[1].answers([adapters[number] for _, number in pairs], prompts)
        ordered = sorted(zip((number for _, number in pairs), found, strict=True))
        return [of_adapter for _, of_adapter in ordered]

    def adapters_at_once(self, size: DecodingSize) -> int:
        """Return of how many adapters the keys and values may be kept together."""
        head = self._shared.model.get_output_embeddings().weight
        return max(1, _CACHE_BYTES // cache_bytes(self._pass, size, head.element_size()))

    def end_decoding(self) -> None:
        """Give back what decoding has kept."""
        self._decoder = None

    def _staged(self, work: Sequence[Work]) -> tuple[list[int], PassKey, torch.Tensor]:
        """Return the seats of `work`, the kind of its pass and what that is told."""
        numbers = [self._seated[item.adapter.name] for item in work]
        return numbers, *stage(work, numbers, self._seats.count)

    def _captured(self, key: PassKey, *, scores: bool) -> "_Captured":
        """Return the pass of this kind; where it is new, the least recently used one may go."""
        self._pass.turn_to(key.longest)
        found = self._graphs.pop((key, scores), None)
        captured = _Captured(self, key, scores=scores) if found is None else found
        self._graphs[key, scores] = captured
        while len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return captured

    def body(self, key: PassKey, words: torch.Tensor, scores_2M: torch.Tensor | None) -> None:
        """Compute a pass as it is: of training, or forward alone where there is room for scores."""
        given = key.view(words)
        if scores_2M is None:
            self._pass.run(given, self._seats, recompute=key.recompute)
        else:
            self._pass.score(given, self._seats, scores_2M)

    def update(self, steps: Sequence[Step]) -> list[StepNumbers]:
        """Let runs make their steps: clip, look for numbers that are not finite, AdamW, each for itself.

        A run whose loss or norm is not finite stays where it is.
        """
        if self._update is None:
            self._update = _Update(self, self._seats)
        numbers = [self._seated[step.adapter.name] for step in steps]
        return self._update.run(steps, numbers)

    def discard(self, adapters: Sequence[Adapter]) -> None:
        """Forget what a failed pass may have added; the steps of these runs begin anew."""
        for adapter in adapters:
            seat = self._seated[adapter.name]
            self._seats.gradients_SP[seat].zero_()
            self._seats.losses_S[seat].zero_()

    def progress_of(self, adapter: Adapter) -> tuple[float, torch.Tensor]:
        """Return the loss and the gradient, in the adapter's layout, of the step in progress."""
        loss, gradient_P = self._begun(adapter)
        gradient_P[adapter.layout.num_a :] *= _scaling(adapter)
        return loss, gradient_P

    def _begun(self, adapter: Adapter) -> tuple[float, torch.Tensor]:
        """Return what the seat has added up of the step in progress; B's gradient lacks the scaling."""
        seat, own_P = self._seated[adapter.name], torch.zeros_like(adapter.flat_P)
        self._seats.read(self._seats.gradients_SP[seat], adapter, own_P)
        return self._seats.losses_S[seat].item(), own_P

    def do(self, body: Callable[[], None], again: Callable[[], None] | None) -> Callable[[], None]:
        """Do `body`, the first time as it is; return what does it `again`: a graph's replay, or itself where
        there are none."""
        if again is not None:
            again()
            return again
        if self._stream is None:
            body()
            return body
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            body()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            body()
        return graph.replay


class _Staging:
    """Host buffers in turn, and the device's one."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.there = torch.zeros(shape, dtype=dtype, device=device)
        self._here = [
            torch.zeros(shape, dtype=dtype, pin_memory=self._on_gpu)
            for _ in range(_STAGES if self._on_gpu else 1)
        ]
        self._copied: list[Any] = [None] * len(self._here)
        self._turn = 0

    def bring(self, values: torch.Tensor) -> None:
        """Copy `values` to the device, behind what it has been given."""
        self._turn = (self._turn + 1) % len(self._here)
        if (event := self._copied[self._turn]) is not None:
            event.synchronize()
        self._here[self._turn].copy_(values)
        self.there.copy_(self._here[self._turn], non_blocking=True)
        if self._on_gpu:
            self._copied[self._turn] = torch.cuda.Event()
            self._copied[self._turn].record()


class _Captured:
    """One kind of pass."""

    def __init__(self, backend: CudaBackend, key: PassKey, *, scores: bool) -> None:
        self._backend, self._key = backend, key
        self.scores_2M: torch.Tensor | None = None
        """What a pass of an evaluation has found, until it is run again."""
        if scores:
            self.scores_2M = torch.zeros(2, key.loss_positions, device=backend._device)
        _, size = key.places()
        self._staging = _Staging((size,), torch.int32, backend._device)
        self._again: Callable[[], None] | None = None

    def run(self, words: torch.Tensor) -> None:
        """Compute the pass; the first time as it is."""
        self._staging.bring(words)
        self._again = self._backend.do(self._body, self._again)

    def _body(self) -> None:
        self._backend.body(self._key, self._staging.there, self.scores_2M)


class _Update:
    """The optimizer step of all seats."""

    def __init__(self, backend: CudaBackend, seats: Seats) -> None:
        self._backend, self._seats = backend, seats
        device = seats.parameters_SP.device
        # Columns: what `Step.settings` says, then whether the seat steps.
        self._given = _Staging((seats.count, ops.SETTINGS + 2), torch.float32, device)
        self._settings = torch.zeros(seats.count, ops.SETTINGS, device=device)
        self._numbers = torch.zeros(seats.count, 2, dtype=torch.float64, device=device)
        self._again: Callable[[], None] | None = None

    def run(self, steps: Sequence[Step], numbers: Sequence[int]) -> list[StepNumbers]:
        """Let some seats step; the others keep what they have."""
        given = torch.zeros(self._seats.count, ops.SETTINGS + 2)
        for step, seat in zip(steps, numbers, strict=True):
            given[seat] = torch.tensor([*step.settings(), 1.0])
        self._given.bring(given)
        self._again = self._backend.do(self._body, self._again)
        if self._numbers.device.type == "cpu":
            rows, done = self._numbers.clone(), None
        else:
            rows = torch.empty(self._numbers.shape, dtype=torch.float64, pin_memory=True)
            rows.copy_(self._numbers, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        return [StepNumbers(rows, seat, done) for seat in numbers]

    def _body(self) -> None:
        seats, given = self._seats, self._given.there
        scaling_S, limit_S, back_S, steps_S = (
            given[:, 10],
            given[:, 11],
            given[:, 12],
            given[:, 13] > 0,
        )
        num_a = seats.layout.num_a
        norm_a, norm_b = (
            torch.linalg.vector_norm(part, dim=1)
            for part in (seats.gradients_SP[:, :num_a], seats.gradients_SP[:, num_a:])
        )
        norm_S = back_S * torch.sqrt(norm_a * norm_a + (scaling_S * norm_b) ** 2)
        self._numbers[:, 0] = seats.losses_S * back_S
        self._numbers[:, 1] = norm_S
        is_finite = torch.isfinite(norm_S) & torch.isfinite(seats.losses_S)
        moves_S = torch.where(steps_S, torch.where(is_finite, 1.0, 0.0), -1.0)
        self._settings[:, :11] = given[:, :11]
        self._settings[:, 11] = torch.clamp(limit_S / (norm_S + 1e-6), max=1.0) * back_S
        ops.adamw_(
            seats.parameters_SP, seats.gradients_SP, seats.means_SP, seats.squares_SP,
            seats.computed_SP, self._settings, moves_S, num_a,
        )  # fmt: skip
        seats.losses_S.copy_(torch.where(moves_S < 0, seats.losses_S, 0.0))


def _scaling(adapter: Adapter) -> float:
    """Return alpha / rank over what dropout keeps."""
    return adapter.scaling / (1 - adapter.dropout)


@functools.cache
def _capture_stream(device: torch.device) -> Any:
    """Return the stream that passes are captured on: cuBLAS keeps 32 MiB for each that it has seen."""
    return torch.cuda.Stream(device)


def windows_of(model: Any) -> list[int | None]:
    """Return how many positions each block's attention sees; None: all before."""
    attention = attention_of(model.config)
    assert isinstance(attention, AttentionKind), "why_not_this_model has refused it"
    return [layer.window for layer in attention.layers]
