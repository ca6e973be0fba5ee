"""What a device reaches, measured: operations per second of a product, bytes per second of a copy.

Measured once for each device and size, and kept in the cache; whoever measures again keeps the higher rate,
since all that disturbs makes it lower. On a GPU a graph is replayed, so that launching is not in it. The
tensors are small: room for them is there beside any run.
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from harness.parsing import Unreadable, read_json, shaped
from harness.records.provenance import cpu_model
from harness.records.run_directory import write_text

_REPEATS = 5
_IN_A_GRAPH = 20
_COPIED_BYTES = {"cuda": 2**28, "cpu": 2**26}
"""More than any cache between the processors and the memory holds."""
_MOST_ROWS = {"cuda": 16384, "cpu": 512}
"""Rows of a product beyond which its rate rises no more."""
_SETTLING_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product of rows with a frozen weight."""

    rows: float
    inputs: int
    outputs: int
    dtype: torch.dtype

    @property
    def operations(self) -> float:
        """Floating-point operations."""
        return 2.0 * self.rows * self.inputs * self.outputs

    def measured_rows(self, device: torch.device) -> int:
        """Return the power of two of rows whose rate stands for this product's."""
        return min(2 ** round(math.log2(max(1.0, self.rows))), _MOST_ROWS[device.type])


class DeviceRates:
    """The rates of one device; what has not been asked before is measured."""

    def __init__(self, device: torch.device, directory: Path | None) -> None:
        """`directory` keeps them; None: nothing does."""
        self.device = device
        self._about = _about(device)
        name = "-".join(str(value) for value in self._about.values())
        slug = "".join(c if c.isalnum() else "-" for c in name)
        self.path = None if directory is None else directory / f"{slug}.json"
        """Where they are kept."""
        self._rates = self._kept()
        self._fresh: set[str] | None = None
        """Rates measured since `measure_again`; None: what is known is used."""

    def bytes_per_second(self) -> float:
        """Return the bandwidth: bytes read and bytes written by a copy."""
        return self._rate("copy", self._copy_rate)

    def operations_per_second(self, product: Product) -> float:
        """Return the rate of a product of this size."""
        rows = product.measured_rows(self.device)
        kind = str(product.dtype).removeprefix("torch.")
        name = f"{kind} {rows}x{product.inputs}x{product.outputs}"
        return self._rate(name, lambda: self._product_rate(product, rows))

    def known(self) -> dict[str, float]:
        """Return all rates by name: `copy` in bytes, products in operations per second."""
        return dict(self._rates)

    def measure_again(self) -> None:
        """Let each rate be measured again when it is asked for next; the higher one stays."""
        self._fresh = set()

    def _rate(self, name: str, measure: Callable[[], float]) -> float:
        known = self._rates.get(name)
        if known is not None and (self._fresh is None or name in self._fresh):
            return known
        self._rates[name] = max(measure(), known or 0.0)
        if self._fresh is not None:
            self._fresh.add(name)
        self._keep()
        return self._rates[name]

    # Measuring -----------------------------------------------------------------------------------

    def _copy_rate(self) -> float:
        source = torch.ones(_COPIED_BYTES[self.device.type], dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        return 2 * source.nbytes / self._seconds(lambda: target.copy_(source))

    def _product_rate(self, product: Product, rows: int) -> float:
        generator = torch.Generator(self.device).manual_seed(0)  # the runs' own are not touched
        left, right = (
            torch.randn(shape, generator=generator, dtype=torch.float32, device=self.device).to(
                product.dtype
            )
            for shape in ((rows, product.inputs), (product.outputs, product.inputs))
        )
        seconds = self._seconds(lambda: F.linear(left, right))
        onednn = _onednn(left, right)
        if onednn is not None:
            seconds = min(seconds, self._seconds(onednn))
        return 2.0 * rows * product.inputs * product.outputs / seconds

    def _seconds(self, work: Callable[[], object]) -> float:
        """Return the least that the device takes for `work`."""
        if self.device.type == "cuda":
            return _replayed_seconds(self.device, work)
        until = time.perf_counter() + _SETTLING_SECONDS  # clocks and caches
        least, count = math.inf, 0
        while count < _REPEATS or time.perf_counter() < until:
            began = time.perf_counter()
            work()
            least, count = min(least, time.perf_counter() - began), count + 1
        return least

    # Keeping -------------------------------------------------------------------------------------

    def _kept(self) -> dict[str, float]:
        if self.path is None:
            return {}
        try:
            tree = read_json(self.path.read_bytes())
            found = shaped(dict[str, float], tree["rates"])
        except (OSError, Unreadable, KeyError, TypeError):
            return {}
        return {n: rate for n, rate in found.items() if math.isfinite(rate) and rate > 0}

    def _keep(self) -> None:
        if self.path is None:
            return
        for name, rate in self._kept().items():  # another process may have measured meanwhile
            self._rates[name] = max(rate, self._rates.get(name, 0.0))
        tree = {**self._about, "rates": self._rates}
        with contextlib.suppress(OSError):  # the cache saves time, and nothing else
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(tree, indent=1) + "\n")


def rates_of(device: torch.device, directory: Path) -> DeviceRates:
    """Return the rates of a device that are kept in a directory, the same ones in all of this process."""
    return _rates(device, directory, torch.get_num_threads())


@functools.cache
def _rates(device: torch.device, directory: Path, _threads: int) -> DeviceRates:
    return DeviceRates(device, directory)


def _about(device: torch.device) -> dict[str, Any]:
    """Return what a rate depends on beside its size."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    threads = torch.get_num_threads()
    return {"device": cpu_model(), "torch": torch.__version__, "threads": threads}


def _onednn(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object] | None:
    """Return the same product by oneDNN, which the CPU backend uses where it is the quicker one."""
    if left.device.type != "cpu" or left.dtype is not torch.float32:
        return None
    if not torch.backends.mkldnn.is_available():
        return None
    linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if linear is None else lambda: linear(left, right, None, "none", [], "")


def _replayed_seconds(device: torch.device, work: Callable[[], object]) -> float:
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        work()  # libraries make their workspaces
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(_IN_A_GRAPH):
            work()
    least = math.inf
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        least = min(least, begin.elapsed_time(end) / 1e3 / _IN_A_GRAPH)
    return least
