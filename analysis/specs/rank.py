"""rank: each rank at its best learning rate, and what the learning rate does at each rank."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="rank",
        title="Loss and exact match by rank, each at its best learning rate",
        rows=("lora.rank",),
        columns=("eval/loss", "eval/exact_match", "adapter/trainable_params"),
        role=Role.search,
        choose=("optim.lr",),
        published=("lora_rank_all_attention", "lora_rank_query_value"),
    ),
    Spec(
        name="rank_by_learning_rate",
        title="Loss by rank, for each learning rate",
        rows=("lora.rank",),
        across="optim.lr",
        columns=("eval/loss",),
        role=Role.search,
    ),
)
