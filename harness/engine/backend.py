"""The backends: who computes the passes over a shared base, chosen once for each.

Every backend gives the reference's losses, gradients and adapters: the CPU's up to the order of sums,
captured steps on a GPU within `CudaBackend.tolerance`. Which one computed a run is in its record. A backend
installs what it needs when it is made: whoever trains or evaluates on the base has nothing to remember.
"""

from typing import TYPE_CHECKING, assert_never

from harness.base.build import Base
from harness.config.resources import BackendName
from harness.engine.cpu.backend import CpuBackend, why_not_cpu
from harness.engine.cuda.backend import CudaBackend, why_not_cuda
from harness.engine.reference.backend import ReferenceBackend
from harness.errors import RequestError

if TYPE_CHECKING:
    from harness.engine.shared_base import SharedBase


def choose_backend(shared: "SharedBase", wanted: BackendName) -> ReferenceBackend:
    """Return the backend for a base. Raises RequestError where the one that is wanted cannot compute it."""
    match wanted:
        case BackendName.auto:
            wanted = quickest_backend(shared.base)
        case BackendName.reference | BackendName.cpu | BackendName.cuda:
            if (reason := why_not(wanted, shared.base)) is not None:
                raise RequestError(
                    f"resources.backend={wanted.value}: {reason}; use resources.backend=auto"
                )
        case _ as unreachable:
            assert_never(unreachable)
    makes = {
        BackendName.reference: ReferenceBackend,
        BackendName.cpu: CpuBackend,
        BackendName.cuda: CudaBackend,
    }
    return makes[wanted](shared)


def quickest_backend(base: Base) -> BackendName:
    """Return what `auto` means for a base."""
    return next(name for name in QUICKEST_FIRST if why_not(name, base) is None)


QUICKEST_FIRST = (BackendName.cuda, BackendName.cpu, BackendName.reference)


def why_not(name: BackendName, base: Base) -> str | None:
    """Return why a backend cannot compute a base, which may be one without weights; None where it can."""
    match name:
        case BackendName.cuda:
            return why_not_cuda(base)
        case BackendName.cpu:
            return why_not_cpu(base)
        case BackendName.reference | BackendName.auto:
            return None
        case _ as unreachable:
            assert_never(unreachable)
