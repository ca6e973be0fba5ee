"""Methods on every storage in one cohort: each run as it is alone, and as PEFT's own training on the decoded
weights. `python -m tests.engine.test_methods` prints the table.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from harness.base.build import build_base, load_dense
from harness.base.source import find_model, model_fingerprint
from harness.config.lora import alpha_patterns, own_alpha
from harness.config.resources import BackendName
from harness.config.schema import (
    LoraConfig,
    LoraInit,
    LoraMethod,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    QuantFormat,
    RunConfig,
)
from harness.config.storage import label_of
from harness.data.compact import example_lengths, folded, trimmed
from harness.data.rows import NO_LOSS, Batch
from harness.engine.adapter import Adapter
from harness.engine.dropout import dropout_key, keep_mask, noise_key, uniform_noise
from harness.engine.micro_step import Work
from harness.engine.neftune import Noise, disturbed
from harness.engine.shared_base import SharedBase
from harness.export.merge import Into, OpenedRun, merged_model
from harness.request import SavedRun
from harness.training.optimizers import AdapterOptimizer, clip_gradients
from tests.random_models import LLAMA, save_random_model

CLOSE = 1e-6
STEPS, CLIP, RATE = 4, 0.3, 2e-3
DORA, QALORA = LoraMethod.dora, LoraMethod.qalora


@dataclass(frozen=True)
class Arm:
    """A run of the table."""

    lora: LoraConfig
    optim: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "LoRA": Arm(LoraConfig(rank=4, alpha=8.0)),
    "rsLoRA": Arm(LoraConfig(rank=8, alpha=8.0, rslora=True, target_modules=["attention"])),
    "LoRA+": Arm(LoraConfig(rank=4, alpha=8.0), {"loraplus_ratio": 16.0}),
    "rank pattern": Arm(
        LoraConfig(rank=4, alpha=6.0, rank_pattern={"q_proj": 16, "0.mlp.up_proj": 2})
    ),
    "alpha pattern": Arm(
        LoraConfig(
            rank=4,
            alpha_over_rank=2.0,
            alpha_pattern={"v_proj": 3.0},
            rank_pattern={".*self_attn.*": 2},
        )
    ),
    "DoRA": Arm(LoraConfig(rank=4, alpha=8.0, method=DORA)),
    "DoRA again": Arm(LoraConfig(rank=4, alpha=12.0, method=DORA)),
    "DoRA, dropout": Arm(
        LoraConfig(rank=2, alpha=3.0, method=DORA, dropout=0.2, target_modules=["mlp"]),
        {"loraplus_ratio": 4.0},
    ),
    "QA-LoRA": Arm(LoraConfig(rank=4, alpha=1.0, method=QALORA, qalora_group_size=16)),
    "QA-LoRA, dropout": Arm(
        LoraConfig(rank=2, alpha=0.5, method=QALORA, qalora_group_size=8, dropout=0.1)
    ),
    "NEFTune": Arm(LoraConfig(rank=4, alpha=8.0), {"neftune_alpha": 5.0}),
    "LoftQ": Arm(LoraConfig(rank=4, alpha=8.0, init=LoraInit.loftq)),
}
ALONE = {
    "PiSSA": Arm(LoraConfig(rank=4, alpha=8.0, init=LoraInit.pissa)),
    "OLoRA": Arm(LoraConfig(rank=4, alpha=4.0, init=LoraInit.olora)),
    "LoftQ, 3 times": Arm(LoraConfig(rank=4, alpha=4.0, init=LoraInit.loftq, loftq_iterations=3)),
    "DoRA on PiSSA": Arm(LoraConfig(rank=4, alpha=8.0, method=DORA, init=LoraInit.pissa)),
}
"""Arms that rewrite their base: two seeds of each train side by side on it."""
WHOLE = {
    "embed_tokens, lm_head": Arm(
        LoraConfig(rank=4, alpha=8.0, train_also=["embed_tokens", "lm_head"])
    ),
    "lm_head, DoRA": Arm(
        LoraConfig(rank=4, alpha=8.0, method=DORA, train_also=["lm_head"]), {"loraplus_ratio": 4.0}
    ),
}
"""Arms that train embeddings or head too, and therefore alone."""
IN_SUITE = ("none", "nf4_dq", "int4_asym_dq", "int8")
STORAGES = [
    QuantConfig(format=each, double_quant=double)
    for each, double in (
        *((QuantFormat.none, False), (QuantFormat.nf4, False), (QuantFormat.nf4, True)),
        *((QuantFormat.fp4, False), (QuantFormat.int4, False), (QuantFormat.int4_asym, True)),
        (QuantFormat.int8, False),
    )
]


def of_storage(arms: dict[str, Arm], quant: QuantConfig) -> dict[str, Arm]:
    """Return the arms that a storage can have: LoftQ begins with what rounding has taken away."""
    rounds = quant.format is not QuantFormat.none
    return {k: a for k, a in arms.items() if rounds or a.lora.init is not LoraInit.loftq}


# Ours --------------------------------------------------------------------------------------------


@cache
def model_directory() -> Path:
    directory = Path(tempfile.mkdtemp()) / "model"
    return save_random_model(directory, "llama", **LLAMA)


def base_of(quant: QuantConfig, backend: BackendName = BackendName.reference) -> SharedBase:
    config = ModelConfig(name=str(model_directory()))
    source = find_model(config)
    cache_place = model_directory().parent / "cache"
    fingerprint = model_fingerprint(source, cache_place / "memo.json")
    cpu = torch.device("cpu")
    base = build_base(source, config, quant, fingerprint=fingerprint, device=cpu, cache=cache_place)
    return SharedBase(base, backend=backend)


def batch_of(seed: int, step: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    ids = torch.randint(3, 300, (2 + seed % 2, 12), generator=generator)
    targets = torch.where(torch.rand(ids.shape, generator=generator) < 0.6, ids, NO_LOSS)
    return Batch.of(ids, targets)


class Trained:
    """One adapter in training, step by step."""

    def __init__(self, shared: SharedBase, arm: Arm, seed: int) -> None:
        self.arm, self.seed, self.losses = arm, seed, list[float]()
        self.adapter: Adapter = shared.attach(arm.lora, seed)
        optim = OptimConfig(lr=RATE, **arm.optim)
        self.noise = optim.neftune_alpha
        self.optimizer = AdapterOptimizer(self.adapter, optim)

    def work(self, step: int) -> Work:
        batch = batch_of(self.seed, step)
        return Work(
            adapter=self.adapter,
            batch=batch,
            loss_tokens=batch.num_loss_tokens,
            dropout_key=dropout_key(self.seed, step) if self.arm.lora.dropout else None,
            recompute=False,
            noise=None if self.noise is None else Noise(noise_key(self.seed, step), self.noise),
        )


def train(shared: SharedBase, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Trained]:
    runs = [Trained(shared, arm, seed) for arm, seed in zip(arms, seeds, strict=True)]
    for step in range(STEPS):
        gradients = shared.backend.gradients([run.work(step) for run in runs])
        clip_gradients([g.of_adapter for g in gradients], [CLIP] * len(runs))
        for run, gradient in zip(runs, gradients, strict=True):
            run.losses.append(gradient.loss.item())
            run.optimizer.step(gradient.of_adapter, RATE)
    return runs


# PEFT's ------------------------------------------------------------------------------------------


class _OurMask(nn.Module):
    """PEFT's dropout with the masks of a run in place of a generator's."""

    def __init__(self, layer: int, rate: float, seed: int) -> None:
        super().__init__()
        self.layer, self.rate, self.seed, self.step = layer, rate, seed, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[0] * x.shape[1])
        kept = keep_mask(
            dropout_key(self.seed, self.step), self.layer, places, x.shape[2], self.rate
        )
        self.step += 1
        return x * kept.view(x.shape) / (1 - self.rate)


class _CudaIsCpu(TorchFunctionMode):
    """Lets PEFT's `loftq_init`, which asks for a GPU, run where there is none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple("cpu" if str(each) == "cuda" else each for each in args)
        kwargs = {k: "cpu" if str(v) == "cuda" else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def decoded_model(shared: SharedBase) -> Any:
    """Return transformers' model with the weights that a base's storage gives back."""
    base = shared.base
    assert base.config is not None
    dense: Any = load_dense(base.source, base.config).float()
    for spec in base.linears:
        layer = shared.model.get_submodule(spec.name)
        packed = getattr(layer, "base_layer", layer)
        shape = (spec.out_features, spec.in_features)
        weight = base.storage.decode(base.storage.tensors(packed), shape, torch.float32)
        dense.get_submodule(spec.name).weight.data = weight.clone()
    return dense.eval()


def peft_model(shared: SharedBase, lora: LoraConfig, seed: int) -> Any:
    """Return PEFT's model on the weights of `shared`, decoded, that begins with `seed`."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from peft.tuners.lora.variants import QALoraLinearVariant

    base = shared.base
    assert base.config is not None
    first: dict[str, torch.Tensor] = {}
    if lora.init in (LoraInit.pissa, LoraInit.olora):
        first = _first_tensors(load_dense(base.source, base.config).float(), lora)
    dense = decoded_model(shared)
    targets = {
        "attention": r".*self_attn\.\w+_proj",
        "mlp": r".*mlp\.\w+_proj",
        "all_linear": "all-linear",
    }
    config: Any = PeftConfig(
        r=lora.rank,
        lora_alpha=own_alpha(lora),  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=targets[lora.target_modules[0]],
        use_rslora=lora.rslora,
        use_dora=lora.method is DORA and not first,
        rank_pattern=dict(lora.rank_pattern or {}),
        alpha_pattern=alpha_patterns(lora),
        qalora_group_size=lora.qalora_group_size,
        modules_to_save=list(lora.train_also) or None,
    )
    torch.manual_seed(seed)
    model: Any = get_peft_model(dense, config)
    index = {spec.name: number for number, spec in enumerate(base.linears)}
    adapted = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_variant")]
    for name, layer in adapted:
        own = name.removeprefix("base_model.model.")
        if lora.method is QALORA:
            layer.lora_variant["default"] = QALoraLinearVariant()
            QALoraLinearVariant.init(layer, "default", config)
        if first:
            for part in ("lora_A", "lora_B"):
                getattr(layer, part)["default"].weight.data = first[f"{own}.{part}"]
        if first and lora.method is DORA:
            from peft.tuners.lora.variants import DoraLinearVariant

            layer.lora_variant["default"] = DoraLinearVariant()
            DoraLinearVariant.init(layer, "default")
        if lora.dropout:
            layer.lora_dropout["default"] = _OurMask(index[own], lora.dropout, seed)
    return model.train()


def _first_tensors(dense: Any, lora: LoraConfig) -> dict[str, torch.Tensor]:
    """Return A and B as PEFT begins with them on the weights as they came."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    config = PeftConfig(
        r=lora.rank,
        lora_alpha=own_alpha(lora),  # pyright: ignore[reportArgumentType]
        target_modules="all-linear",
        init_lora_weights=lora.init.value,  # pyright: ignore[reportArgumentType]
    )
    model: Any = get_peft_model(dense, config)
    return {
        f"{name.removeprefix('base_model.model.')}.{part}": getattr(layer, part)[
            "default"
        ].weight.data
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_variant")
        for part in ("lora_A", "lora_B")
    }


def peft_losses(
    shared: SharedBase, run: Trained, start: dict[str, torch.Tensor] | None
) -> list[float]:
    """Return the losses of PEFT's own training; `start`: A and B to begin with, by their names."""
    from peft.optimizers import create_loraplus_optimizer

    arm = run.arm
    model = peft_model(shared, arm.lora, run.seed)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if start is not None:
        for name, parameter in named.items():
            parameter.data = start[name].clone()
    optimizer: Any = create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=RATE,
        loraplus_lr_ratio=arm.optim.get("loraplus_ratio", 1.0),
        weight_decay=0.0,
    )
    losses = []
    for step in range(STEPS):
        batch = batch_of(run.seed, step)
        if run.noise is not None:
            disturb(model, batch, noise_key(run.seed, step), run.noise)
        logits = model(input_ids=batch.input_ids_BT).logits
        targets = batch.targets_BT.flatten()
        of_token = F.cross_entropy(
            logits.flatten(0, 1), targets, ignore_index=NO_LOSS, reduction="none"
        )
        (of_token.sum() / batch.num_loss_tokens).backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(of_token.detach().double().sum().item() / batch.num_loss_tokens)
    return losses


def disturb(model: Any, batch: Batch, key: int, alpha: float) -> None:
    """Let a model's next embeddings have NEFTune's noise, as its authors write it: over each row's own
    length."""

    def add(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        handle.remove()
        rows, length, hidden = output.shape
        carries = batch.targets_BT != NO_LOSS
        own_B11 = (carries * torch.arange(1, length + 1)).amax(1).view(rows, 1, 1)
        noise = uniform_noise(key, torch.arange(rows * length), hidden).view(output.shape)
        return output + alpha / torch.sqrt(own_B11 * hidden) * noise

    handle = model.get_input_embeddings().register_forward_hook(add)


# The table ---------------------------------------------------------------------------------------


def worst(one: Sequence[float], other: Sequence[float]) -> float:
    assert len(one) == len(other) == STEPS
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def of_cohort(quant: QuantConfig) -> Iterator[tuple[str, float, float]]:
    """Yield each arm's largest differences of a loss: from itself alone, and from PEFT's training."""
    arms = of_storage(ARMS, quant)
    shared = base_of(quant)
    runs = train(shared, list(arms.values()), range(len(arms)))
    for name, run in zip(arms, runs, strict=True):
        (alone,) = train(base_of(quant), [run.arm], [run.seed])
        start = loftq_start(quant, run) if run.arm.lora.init is LoraInit.loftq else None
        theirs = peft_losses(base_of(quant), run, start)
        yield name, worst(run.losses, alone.losses), worst(run.losses, theirs)


def of_pairs(quant: QuantConfig) -> Iterator[tuple[str, float, float]]:
    """Yield the same of the arms that rewrite their base, of which two seeds share one."""
    for name, arm in of_storage(ALONE, quant).items():
        shared = base_of(quant)
        runs = train(shared, [arm, arm], [0, 1])
        (alone,) = train(base_of(quant), [arm], [1])
        start = loftq_start(quant, runs[1]) if arm.lora.init is LoraInit.loftq else None
        theirs = peft_losses(shared, runs[1], start)
        yield name, worst(runs[1].losses, alone.losses), worst(runs[1].losses, theirs)


def loftq_start(quant: QuantConfig, run: Trained) -> dict[str, torch.Tensor]:
    """Return A and B as our LoftQ has them, by PEFT's names; another test compares them with PEFT's."""
    shared = base_of(quant)
    adapter = shared.attach(run.arm.lora, run.seed)
    return {
        "base_model.model." + name.replace(adapter.name, "default"): parameter.detach()
        for name, parameter in adapter.parameters.items()
    }


@pytest.mark.parametrize(
    "quant",
    [
        pytest.param(each, marks=[] if label_of(each) in IN_SUITE else pytest.mark.slow)
        for each in STORAGES
    ],
    ids=label_of,
)
def test_every_method_in_a_cohort_equals_itself_alone_and_peft(quant: QuantConfig) -> None:
    for name, from_alone, from_peft in of_cohort(quant):
        assert from_alone < CLOSE, name
        assert from_peft < CLOSE, name


def of_wholes(quant: QuantConfig) -> Iterator[tuple[str, float, float]]:
    """Yield the same of the arms that train alone: after another run on the base, and on one of their own."""
    shared = base_of(quant)
    train(shared, [ARMS["LoRA"]], [0])
    for name, arm in WHOLE.items():
        (run,) = train(shared, [arm], [3])
        shared.detach(run.adapter)
        (alone,) = train(base_of(quant), [arm], [3])
        theirs = peft_losses(base_of(quant), run, None)
        yield name, worst(run.losses, alone.losses), worst(run.losses, theirs)


@pytest.mark.parametrize("quant", STORAGES[:2], ids=label_of)
def test_a_run_with_embeddings_or_head_of_its_own_leaves_the_bases_as_they_are(
    quant: QuantConfig,
) -> None:
    for name, from_alone, from_peft in of_wholes(quant):
        assert from_alone < CLOSE, name
        assert from_peft < CLOSE, name


@pytest.mark.parametrize("iterations", [1, 4])
def test_loftq_begins_as_pefts(iterations: int) -> None:
    from peft.utils.loftq_utils import loftq_init

    quant = QuantConfig(format=QuantFormat.nf4)
    lora = LoraConfig(rank=4, alpha=4.0, init=LoraInit.loftq, loftq_iterations=iterations)
    shared = base_of(quant)
    adapter = shared.attach(lora, seed=0)
    assert shared.base.config is not None
    dense: Any = load_dense(shared.base.source, shared.base.config)
    for name, weight in dense.named_parameters():
        own = name.removesuffix(".weight")
        if f"{own}.lora_A.{adapter.name}.weight" not in adapter.parameters or weight.shape[1] % 64:
            continue  # on a CPU bitsandbytes decodes rows of no whole blocks otherwise than it encoded them
        with _CudaIsCpu():
            stored, a, b = loftq_init(weight.data.clone(), 4, 4, iterations)
        layer: Any = shared.model.get_submodule(own)
        ours = layer.lora_B[adapter.name].weight @ layer.lora_A[adapter.name].weight
        assert (ours - b @ a).abs().max() < CLOSE
        assert (layer.base_layer.dense_weight(torch.float32) - stored).abs().max() < CLOSE


@pytest.mark.parametrize("quant_format", [QuantFormat.int4, QuantFormat.fp4, QuantFormat.int8])
def test_loftq_is_nearer_to_the_weights_the_longer_it_looks_whatever_the_scale(
    quant_format: QuantFormat,
) -> None:
    """Distance from the weights as they came, of what the run begins with; without LoftQ, of the base
    alone."""
    found = []
    for iterations in (0, 1, 3):
        init = {"init": LoraInit.loftq, "loftq_iterations": iterations} if iterations else {}
        shared = base_of(QuantConfig(format=quant_format))
        adapter = shared.attach(LoraConfig(rank=8, alpha=16.0, **init), seed=0)  # pyright: ignore[reportArgumentType]
        assert shared.base.config is not None
        dense: Any = load_dense(shared.base.source, shared.base.config)
        layer: Any = shared.model.get_submodule(name := "model.layers.0.mlp.up_proj")
        begun = layer.base_layer.dense_weight(torch.float32) + adapter.scaling * (
            layer.lora_B[adapter.name].weight @ layer.lora_A[adapter.name].weight
        )
        found.append(float((begun - dense.get_submodule(name).weight).norm()))
    assert found[1] < 0.9 * found[0]
    assert found[2] < found[1]


@pytest.mark.parametrize("quant", STORAGES[:2], ids=label_of)
def test_runs_that_rewrite_a_base_alike_share_it(quant: QuantConfig) -> None:
    for name, from_alone, from_peft in of_pairs(quant):
        assert from_alone < CLOSE, name
        assert from_peft < CLOSE, name


FILED = {name: ARMS[name] for name in ("rank pattern", "alpha pattern", "DoRA", "QA-LoRA", "LoftQ")}


@pytest.mark.parametrize("name", [*FILED, *WHOLE])
def test_the_file_loads_in_plain_peft_gives_the_same_logits_and_merges(
    name: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    arm = (FILED | WHOLE)[name]
    shared = base_of(QuantConfig(format=QuantFormat.int4))
    (run,) = train(shared, [arm], [3])
    shared.save(run.adapter, tmp_path)
    ids = batch_of(5, 0).input_ids_BT
    with torch.no_grad(), shared.only(run.adapter):
        ours = shared.model(ids).logits
    loaded: Any = PeftModel.from_pretrained(decoded_model(shared), str(tmp_path)).eval()
    with torch.no_grad():
        assert (loaded(ids).logits - ours).abs().max() < 1e-5

    config = RunConfig(model=ModelConfig(name=str(model_directory())), lora=arm.lora)
    saved = SavedRun("run", config, shared.base.source, shared.base.fingerprint)
    merged = merged_model(OpenedRun(saved, shared, run.adapter, None), Into.rounded)
    expected = loaded.merge_and_unload().state_dict()
    for key, tensor in merged.state_dict().items():
        assert torch.allclose(tensor.float(), expected[key], rtol=2**-7, atol=1e-6), key

    again = shared.attach(arm.lora, seed=9)
    assert not torch.equal(again.flat_P, run.adapter.flat_P)
    shared.load(again, tmp_path)
    assert torch.allclose(again.flat_P, run.adapter.flat_P, rtol=1e-6)


def test_qalora_is_a_change_of_the_bases_zero_points() -> None:
    """Groups of two blocks: what the adapter adds is one number for each block, and so is its offset."""
    quant = QuantConfig(format=QuantFormat.int4_asym, block_size=32)
    shared = base_of(quant)
    lora = LoraConfig(
        rank=4, alpha=8.0, method=QALORA, qalora_group_size=32, target_modules=["mlp"]
    )
    (run,) = train(shared, [Arm(lora)], [0])
    file, storage = shared.file_tensors(run.adapter), shared.base.storage
    for spec in shared.base.linears:
        if "mlp" not in spec.name:
            continue
        a, b = (file[f"base_model.model.{spec.name}.lora_{part}.weight"] for part in "AB")
        added = (run.adapter.scaling * b @ a).detach()
        layer: Any = shared.model.get_submodule(spec.name)
        tensors, shape = storage.tensors(layer.base_layer), (spec.out_features, spec.in_features)
        of_block = added.view(-1, quant.block_size)[:, 0]
        shifted = tensors | {"offset": tensors["offset"] + of_block}
        merged = storage.decode(shifted, shape, torch.float32)
        expected = storage.decode(tensors, shape, torch.float32) + added
        assert (merged - expected).abs().max() < CLOSE
        assert added.abs().max() > 1e-4


def test_noise_goes_by_the_place_in_the_runs_own_batch_and_the_examples_length() -> None:
    """Folded into fewer rows or not, with padding or without, an example's embeddings move alike."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (6, 24), generator=generator)
    targets = torch.full_like(ids, NO_LOSS)
    for row, length in enumerate((3, 5, 9, 4, 7, 24)):
        targets[row, :length] = 7
    padded = Batch.of(ids, targets)
    for laid_out in (folded(padded), trimmed(padded)):
        embedded = torch.zeros(*laid_out.input_ids_BT.shape, 8)
        embeddings = nn.Embedding(300, 8)
        embeddings.weight.data.zero_()
        model: Any = nn.Module()
        model.get_input_embeddings = lambda embeddings=embeddings: embeddings
        with disturbed(model, [laid_out], [Noise(11, 5.0)]):
            embedded = embeddings(laid_out.input_ids_BT)
        lengths = example_lengths(padded).reshape(-1)
        scale = 5.0 / torch.sqrt(lengths * 8.0)
        of_place = uniform_noise(11, torch.arange(padded.num_input_tokens), 8) * scale[:, None]
        carries = laid_out.targets_BT != NO_LOSS
        found, places = embedded[carries], laid_out.places[carries]
        assert torch.allclose(found, of_place[places], rtol=1e-6)
        assert float(found.detach().abs().max()) > 0.5


def test_noise_is_evenly_spread() -> None:
    noise = uniform_noise(3, torch.arange(4096), 64)
    assert float(noise.abs().max()) < 1
    assert abs(float(noise.mean())) < 3 / (3 * noise.numel()) ** 0.5
    shares = torch.histc(noise, bins=16, min=-1, max=1) / noise.numel()
    assert (shares - 1 / 16).abs().max() < 5e-3


def main() -> None:
    """Print the table: the larger of both differences, in Markdown."""
    print("| method | " + " | ".join(label_of(quant) for quant in STORAGES) + " |")
    print("| --- |" + " ---: |" * len(STORAGES))
    found = {
        label_of(quant): {
            n: rest for n, *rest in (*of_cohort(quant), *of_pairs(quant), *of_wholes(quant))
        }
        for quant in STORAGES
    }
    for name in (*ARMS, *ALONE, *WHOLE):
        cells = [of.get(name) for of in found.values()]
        texts = ["—" if c is None else f"{c[0]:.0e}, {c[1]:.0e}" for c in cells]
        print(f"| {name} | {' | '.join(texts)} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
