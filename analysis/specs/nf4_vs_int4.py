"""nf4_vs_int4: formats against NF4 at each block size, with what rounding alone does."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="formats_against_nf4",
        title="Formats against NF4 at the same block size, each at its best learning rate",
        rows=("quant", "quant.block_size"),
        columns=("eval/loss", "before.eval/loss", "base/bits_per_param"),
        role=Role.search,
        choose=("optim.lr",),
        against={"quant": "nf4"},
        published=("qlora_rounding",),
    ),
)
