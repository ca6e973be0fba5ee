"""demo: base formats down, ranks side by side."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="rank_for_each_format",
        title="Loss by format of the base, for each LoRA rank",
        rows=("quant",),
        across="lora.rank",
        columns=("eval/loss",),
        role=Role.search,
    ),
)
