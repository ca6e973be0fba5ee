"""Which tables a sweep gets: the default ones of any sweep, and its own where `sweeps/` has its question."""

from analysis.frame import Role
from analysis.sources import SweepData
from analysis.spec import Spec
from analysis.specs import (
    alpha,
    demo,
    double_quant,
    full_fine_tuning,
    joint,
    nf4_vs_int4,
    rank,
    rank_by_format,
    targets,
)
from analysis.specs.default import default_specs

OF_SWEEP: dict[str, tuple[Spec, ...]] = {
    "alpha": alpha.SPECS,
    "demo": demo.SPECS,
    "double_quant": double_quant.SPECS,
    "full_fine_tuning": full_fine_tuning.SPECS,
    "joint": joint.SPECS,
    "nf4_vs_int4": nf4_vs_int4.SPECS,
    "rank": rank.SPECS,
    "rank_by_format": rank_by_format.SPECS,
    "targets": targets.SPECS,
}
"""Tables beside the default ones, by the name of the sweep."""


def specs_for(sweep: SweepData) -> list[Spec]:
    """Return the tables of a sweep, the confirmation first; none for which it has no run."""
    default = default_specs(sweep)
    own = OF_SWEEP.get(sweep.name, ()) if sweep.rows_of(Role.search) else ()
    verdict = [spec for spec in default if spec.role is Role.confirmation]
    return [*verdict, *own, *(spec for spec in default if spec not in verdict)]
