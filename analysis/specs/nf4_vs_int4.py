"""nf4_vs_int4: formats side by side at each block size, and against NF4, with what rounding alone does."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="formats_by_block_size",
        title="Loss after fine-tuning by block size, for each format",
        rows=("quant.block_size",),
        across="quant",
        columns=("eval/loss",),
        role=Role.search,
    ),
    Spec(
        name="formats_against_nf4",
        title="Formats against NF4 at the same block size",
        rows=("quant", "quant.block_size"),
        columns=("eval/loss", "before.eval/loss", "base/bits_per_param"),
        role=Role.search,
        against={"quant": "nf4"},
        published=("qlora_rounding",),
    ),
)
