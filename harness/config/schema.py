"""The typed configuration of one run: plain data with a unit in each name or docstring.

Must not import torch, transformers, wandb or hydra: `harness --help` and every reader of records
import this. Composition stands in `harness.config.compose`, judgement in `harness.config.validate`.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from harness.config.resources import ResourcesConfig


class QuantFormat(Enum):
    """How the linear weights of the frozen base are stored."""

    none = "none"
    nf4 = "nf4"
    fp4 = "fp4"
    fp4_e2m1 = "fp4_e2m1"
    fp4_e3m0 = "fp4_e3m0"
    af4 = "af4"
    int4 = "int4"
    int4_asym = "int4_asym"
    int3_asym = "int3_asym"
    int2_asym = "int2_asym"
    int8 = "int8"
    as_stored = "as_stored"
    """As the checkpoint came: what bitsandbytes, GPTQ or AWQ has rounded is not rounded again."""


class FloatType(Enum):
    """A floating-point type by its torch name."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Attention(Enum):
    """Which attention implementation of transformers the base runs."""

    sdpa = "sdpa"
    eager = "eager"


class LoraInit(Enum):
    """How the adapter begins, by PEFT; all but the first two look at the dense weights."""

    default = "default"
    gaussian = "gaussian"
    pissa = "pissa"
    olora = "olora"
    loftq = "loftq"
    """What rounding has taken from the weights, to the adapter's rank (Li et al. 2023, arXiv 2310.08659)."""

    @property
    def from_dense(self) -> bool:
        """Whether it begins with the weights as they came."""
        match self:
            case LoraInit.default | LoraInit.gaussian:
                return False
            case LoraInit.pissa | LoraInit.olora | LoraInit.loftq:
                return True
            case _ as unreachable:
                assert_never(unreachable)


class OptimizerName(Enum):
    """The optimizer of one adapter: torch's fused AdamW or bitsandbytes' 8-bit and paged ones."""

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"
    paged_adamw_8bit = "paged_adamw_8bit"
    paged_adamw_32bit = "paged_adamw_32bit"

    @property
    def is_paged(self) -> bool:
        """Whether its state lies in memory that moves between GPU and host as it is needed."""
        return self in (OptimizerName.paged_adamw_8bit, OptimizerName.paged_adamw_32bit)


class Schedule(Enum):
    """Learning rate after the warm-up, by the names of transformers' `get_scheduler`."""

    constant = "constant"
    constant_with_warmup = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"
    cosine_with_restarts = "cosine_with_restarts"
    cosine_with_min_lr = "cosine_with_min_lr"
    cosine_warmup_with_min_lr = "cosine_warmup_with_min_lr"
    polynomial = "polynomial"
    inverse_sqrt = "inverse_sqrt"
    warmup_stable_decay = "warmup_stable_decay"
    reduce_lr_on_plateau = "reduce_lr_on_plateau"
    greedy = "greedy"


FOLLOWS_LOSS = (Schedule.reduce_lr_on_plateau, Schedule.greedy)
"""Schedules that go by the losses of the evaluations on the way, not by the step."""


class DataForm(Enum):
    """How one record of a data source becomes prompt and response."""

    pairs = "pairs"
    messages = "messages"
    text = "text"


class Template(Enum):
    """The text around prompt and response; `tokenizer` is the model's own chat template."""

    plain = "plain"
    alpaca = "alpaca"
    chatml = "chatml"
    tokenizer = "tokenizer"


class LossOn(Enum):
    """Which positions carry loss."""

    response = "response"
    all = "all"


class Split(Enum):
    """A part of a data source."""

    train = "train"
    validation = "validation"
    test = "test"


class TrackerName(Enum):
    """Where metrics go besides the record on disk."""

    none = "none"
    wandb_offline = "wandb_offline"
    wandb_online = "wandb_online"
    tensorboard = "tensorboard"


class LoraMethod(Enum):
    """What a run trains, and what an adapter computes from A and B."""

    lora = "lora"
    """x -> s B A x (Hu et al. 2021, arXiv 2106.09685)."""
    dora = "dora"
    """LoRA whose sum with the weight is scaled, row by row, to a trained magnitude (Liu et al. 2024, arXiv
    2402.09353)."""
    qalora = "qalora"
    """LoRA on the sums of groups of inputs, so that it can be merged into zero points (Xu et al. 2023, arXiv
    2309.14717)."""
    none = "none"
    """No adapter: every parameter of the model itself, full fine-tuning of an unquantized base, alone."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The frozen base: a causal language model built of linear layers."""

    name: str = "embedded"
    """`embedded`, a local directory, or a Hugging Face id. Nothing is downloaded for `embedded`."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id; refused for a directory."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: a model that needs it is refused."""
    attention: Attention = Attention.sdpa


@dataclass(kw_only=True, slots=True)
class QuantConfig:
    """Storage of the linear layers of the blocks; embeddings, norms and head are never quantized."""

    format: QuantFormat = QuantFormat.nf4
    double_quant: bool = False
    """Quantize the per-block constants too, to 8 bits in blocks of 256 (QLoRA, section 3)."""
    block_size: int = 64
    """Weights per block of one scale, 32 to 4096, a power of two; formats of 2 to 4 bits only."""
    compute_dtype: FloatType = FloatType.float32
    """Type of activations and of everything that is not quantized; float16 trains with a loss scale."""
    skip_experts: bool = False
    """Allow more than a tenth of the blocks' weights to stay unpacked and unadapted: those in no linear layer
    and no fused experts that are understood."""


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """One adapter. Exactly one of `alpha` and `alpha_over_rank` is given, where there is one."""

    method: LoraMethod = LoraMethod.lora
    target_modules: list[str] = field(default_factory=lambda: ["all_linear"])
    """Sets (`all_linear`, `attention`, `mlp`) or names of linear layers, each of which must match."""
    rank: int = 8
    alpha: float | None = None
    """LoRA's scale numerator: updates are scaled by alpha/rank, or alpha/sqrt(rank) with rslora."""
    alpha_over_rank: float | None = None
    """alpha as a multiple of the rank (of a layer's own, with `rank_pattern`), so that a sweep over ranks
    keeps the scale."""
    rank_pattern: dict[str, int] | None = None
    """Ranks of some layers instead of `rank`, by PEFT's regular expressions for the end of a layer's name;
    the first that matches counts."""
    alpha_pattern: dict[str, float] | None = None
    """alpha of some layers instead of the adapter's, likewise."""
    dropout: float = 0.0
    """Probability in [0, 1) of dropping an input of the adapter while training."""
    rslora: bool = False
    """Scale by alpha/sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732)."""
    init: LoraInit = LoraInit.default
    loftq_iterations: int = 1
    """Times that LoftQ rounds and looks at what is left; from the second on it rounds another base."""
    qalora_group_size: int = 16
    """Inputs that QA-LoRA adds up to one; where it is a multiple of quant.block_size, the adapter can be
    merged into the zero points of int4_asym."""
    train_also: list[str] = field(default_factory=list)
    """`embed_tokens`, `lm_head`: trained whole beside the adapter, in float32, each a copy of the run's
    own."""
    compute_dtype: FloatType = FloatType.float32
    """Type in which A and B are multiplied; they are kept, and their gradients added up, in float32."""

    @property
    def trains_all(self) -> bool:
        """Whether the model itself is trained: full fine-tuning, without an adapter."""
        return self.method is LoraMethod.none

    @property
    def trains_alone(self) -> bool:
        """Whether it trains matrices that all rows of a pass go through, so that it cannot share one."""
        return self.trains_all or bool(self.train_also)

    @property
    def rewrites_base(self) -> bool:
        """Whether its run changes the base's own weights, so that only those that begin alike can share
        it."""
        match self.init:
            case LoraInit.default | LoraInit.gaussian:
                return self.trains_all
            case LoraInit.pissa | LoraInit.olora:
                return True
            case LoraInit.loftq:
                return self.loftq_iterations > 1
            case _ as unreachable:
                assert_never(unreachable)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """What the adapter is trained and scored on. Exactly one of `task`, `path` and `hub` is given."""

    task: str | None = None
    """An embedded procedural task: facts, rule, dialect, skills; in English comments, instructions."""
    path: str | None = None
    """A .jsonl, .json, .csv, .tsv, .parquet or .txt file with the training rows; may be gzipped (.gz)."""
    hub: str | None = None
    """A Hugging Face data set id, or a local directory that `datasets` can load."""
    hub_config: str | None = None
    hub_split: str = "train"
    revision: str | None = None
    """Branch, tag or commit of the hub data set."""
    validation_path: str | None = None
    """A file of validation rows; without it they are split off the training rows."""
    test_path: str | None = None
    """A file of test rows; without it they are split off the training rows."""
    train_rows: int | None = None
    """Training rows at most (an embedded task makes exactly this many); none: all there are."""
    validation_rows: int = 200
    test_rows: int = 200
    """Rows split off (at most a quarter of the source each), or read at most from the given file."""
    split_seed: int = 0
    """Seed of the split and of an embedded task's rows; the same for every run of a sweep."""
    form: DataForm = DataForm.pairs
    prompt_column: str = "prompt"
    response_column: str = "response"
    input_column: str | None = None
    """Optional second part of the prompt, as Alpaca's `input`."""
    messages_column: str = "messages"
    text_column: str = "text"
    template: Template = Template.plain
    system: str | None = None
    """System message for the chatml and tokenizer templates."""
    loss_on: LossOn = LossOn.response
    max_length: int = 256
    """Tokens per row at most; longer rows are cut at the end, counted and reported."""
    packing: bool = False
    """Put several examples into one row, without attention between them."""
    answers: str | None = None
    """A file of prompts (.jsonl, or .txt with one a line) that are answered before and after training."""
    strict: bool = False
    """Refuse data in whose answers the chat template drops or adds text; else a note counts them."""


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """How one adapter is trained. Exactly one of `steps` and `epochs` is given."""

    name: OptimizerName = OptimizerName.adamw
    lr: float = 2e-4
    loraplus_ratio: float = 1.0
    """Learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv 2402.12354)."""
    neftune_alpha: float | None = None
    """Noise on the embeddings while training, over sqrt(length x hidden) (NEFTune, Jain et al. 2023, arXiv
    2310.05914); none: no noise."""
    schedule: Schedule = Schedule.constant
    warmup_steps: int = 0
    schedule_cycles: float | None = None
    """Waves of a cosine, or its restarts; none: transformers' own, half a wave or one restart."""
    schedule_power: float | None = None
    """Exponent of the polynomial schedule; none: 1."""
    min_lr_ratio: float | None = None
    """Lowest learning rate over `lr`, of the schedules that have a floor."""
    decay_steps: int | None = None
    """Last steps in which warmup_stable_decay comes down."""
    patience: int | None = None
    """Evaluations on the way without a lower loss after which a run stops early; none: never."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_grad_norm: float | None = 0.3
    """L2 norm that this adapter's gradient is clipped to; none: no clipping."""
    batch_size: int = 16
    """Rows per optimizer step."""
    micro_batch_size: int | None = None
    """Rows per forward pass; divides batch_size. None: the whole batch."""
    steps: int | None = None
    epochs: float | None = None
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    offload_activations: bool = False
    """Keep the inputs of blocks, from which gradient checkpointing recomputes, in the host's memory."""


EMBEDDED_DOMAIN = "embedded"
"""The `eval.base_domain` that is no file: held-out documents of the embedded base's corpus."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """What is measured on held-out rows, before training, every so often, and at the end."""

    split: Split = Split.validation
    every_steps: int | None = None
    """Evaluate the loss after every so many steps; none: only before and after."""
    every_epochs: float | None = None
    """Evaluate the loss after every so many epochs instead."""
    before: bool = True
    """Evaluate the untouched base first."""
    batch_size: int = 32
    """Rows per forward pass."""
    stride: int | None = None
    """Of data.form=text: documents joined to one text, scored in windows of data.max_length tokens that begin
    so far apart; none: each document alone."""
    generate: bool = True
    """Score greedily generated answers by exact match and ROUGE-L (rows with a prompt only)."""
    generate_rows: int | None = 100
    """Rows to generate answers for at most; none: all."""
    max_new_tokens: int = 64
    keep_best: bool = False
    """Keep the adapter of the evaluation with the lowest loss instead of the last."""
    base_domain: str | None = None
    """Text of what the base was trained on, to measure forgetting: a file (.txt, or .jsonl with `text`), or
    `embedded`, documents of the embedded base's own corpus that it has not seen."""
    base_domain_rows: int | None = 200
    """Documents of it at most, evenly spaced; none: all of a file."""
    choice_path: str | None = None
    """A file of multiple-choice questions (MMLU or ARC form) to score by likelihood."""
    choice_shots_path: str | None = None
    """Questions to take the k solved examples of a prompt from (of the same subject, where given)."""
    choice_shots: int = 0
    choice_rows: int | None = None
    """Questions at most; none: all."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of lm-evaluation-harness (extra `lm_eval`): its names of tasks, groups and tags, or YAML files
    and directories of them."""
    num_fewshot: int | None = None
    """Solved examples in a prompt of `tasks`; none: each task's own."""
    limit: float | None = None
    """Documents of each of `tasks` at most; below 1, the share of them. None: all."""
    apply_chat_template: bool = False
    """Ask `tasks` in the tokenizer's chat template, solved examples as turns."""

    @property
    def goes_on(self) -> bool:
        """Whether the loss is evaluated on the way, too."""
        return self.every_steps is not None or self.every_epochs is not None


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    """Where metrics are mirrored. Does not change the result."""

    name: TrackerName = TrackerName.wandb_offline
    project: str = "qlora-harness"
    entity: str | None = None
    group: str | None = None
    """The sweep's name."""
    job_type: str = "run"
    tags: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When a run can be resumed from. Does not change the result."""

    every_steps: int | None = None
    every_epochs: float | None = None
    every_seconds: float | None = 60.0
    keep: int = 2
    """Newest checkpoints kept; at least 2, so that a damaged one has one before it."""


@dataclass(kw_only=True, slots=True)
class PathsConfig:
    """Where things are written. Does not change the result."""

    out: str = "out"
    cache: str | None = None
    """Quantized bases and tokenized data; none: `<out>/cache`."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything that one run is."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = 0
    """Seed of the adapter's initialization, data order and dropout."""
