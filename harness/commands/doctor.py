"""`harness doctor`: what there is to compute with, what it reaches, who computes what, and what falls back.

Nothing here is assumed: devices are asked, rates are measured, and each format's backend is chosen as a run
would choose it, for the model that is asked about.
"""

import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from harness.config.compose import compose_run, group_options
from harness.config.schema import FloatType, RunConfig
from harness.errors import RequestError
from harness.records.provenance import collect_provenance
from harness.request import make_request

DOCTOR_HELP = """\
usage: harness doctor [override…] [--json]

Prints devices, driver, versions and measured rates; for each format, which backend computes the model's
passes and why no quicker one does; what is captured, and what falls back. Overrides are those of `harness
run`: model=… resources.device=… and so on say what to ask about.
"""

OPTIONAL = {
    "triton": "captured steps on a GPU",
    "tensorboard": "tracker=tensorboard",
}
"""Packages beside those that every installation has, and what needs them."""
COUNTERS = {"utilisation": "utilization", "power": "power_watts", "energy": "energy_joules"}
"""What NVML may tell, and the field of its sample."""
_ROWS, _SIDE = 512, 2048
"""Of the products that are measured here."""


def doctor_command(overrides: Sequence[str], *, as_json: bool) -> int:
    """Print what there is. Raises RequestError for a request that no run could make."""
    config = compose_run(list(overrides))
    found = examine(config)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(_text(found)))
    return 0


def examine(config: RunConfig) -> dict[str, Any]:
    """Return everything that is printed, as one JSON document."""
    import torch

    from harness.base.quick_imports import quiet_libraries
    from harness.config.devices import resolved_device, threads_per_process

    quiet_libraries()
    if config.resources.threads is not None:
        torch.set_num_threads(threads_per_process(config.resources))
    machine = collect_provenance().as_tree()
    device = torch.device(resolved_device(config.resources.device))
    return {
        "machine": {
            "host": machine["host"],
            "os": machine["os"],
            "cpu": machine["cpu"],
            "cores": machine["cpu_cores"],
            "threads": torch.get_num_threads(),
            "ram_bytes": machine["ram_bytes"],
            "python": machine["python"],
        },
        "packages": {**machine["packages"], **_optional()},
        "device": str(device),
        "cuda": _cuda(),
        "rates": _rates(config, device),
        "model": config.model.name,
        "backends": list(_backends(config, device)),
        "captured": _captured(device),
        "lacks": list(_lacks(device)),
    }


def _optional() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in OPTIONAL:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _cuda() -> dict[str, Any]:
    """Return the CUDA devices that torch sees, or why it sees none."""
    import torch

    version = torch.version.cuda
    if version is None:
        return {"devices": [], "why_none": f"torch {torch.__version__} is built without CUDA"}
    if not torch.cuda.is_available():
        return {
            "devices": [],
            "why_none": f"torch is built for CUDA {version}; no driver shows it a GPU",
        }
    devices = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": about.name,
                "capability": f"{about.major}.{about.minor}",
                "memory_bytes": about.total_memory,
                "multiprocessors": about.multi_processor_count,
                **_nvml(torch.device("cuda", index)),
            }
        )
    return {"devices": devices, "runtime": version, "why_none": None}


def _nvml(device: Any) -> dict[str, Any]:
    """Return what NVML tells of a GPU: its driver, and which counters of a series it has."""
    from harness.measure.nvml import GpuSampler, driver_version

    sample = GpuSampler(device).newest()
    told = [
        name
        for name, field in COUNTERS.items()
        if sample is not None and getattr(sample, field) is not None
    ]
    return {"driver": driver_version(), "nvml": told}


def _rates(config: RunConfig, device: Any) -> dict[str, Any]:
    """Measure copies and products anew: a rate that rises replaces what runs have measured."""
    from harness.base.storage import TORCH_DTYPES
    from harness.measure.rates import DeviceRates, Product
    from harness.measure.work import peak_rate
    from harness.training.launch import cache_directory

    rates = DeviceRates(device, cache_directory(config) / "rates")
    rates.measure_again()
    products = {
        kind.value: rates.operations_per_second(
            Product(rows=_ROWS, inputs=_SIDE, outputs=_SIDE, dtype=TORCH_DTYPES[kind])
        )
        for kind in FloatType
    }
    return {
        "copy_bytes_per_second": rates.bytes_per_second(),
        "product": f"{_ROWS} rows with {_SIDE} x {_SIDE}",
        "operations_per_second": products,
        "published_dense_bf16": peak_rate(device),
        "kept": str(rates.path),
    }


def _backends(config: RunConfig, device: Any) -> Iterator[dict[str, Any]]:
    """Yield for each format who computes its passes, and why those before it in speed do not."""
    from harness.base.build import outline_base
    from harness.engine.backend import QUICKEST_FIRST, quickest_backend, why_not

    request = make_request(config, writes=False)
    source = request.source
    given = config.quant.compute_dtype
    for name in group_options()["quant"]:
        quant = compose_run([f"quant={name}", f"quant.compute_dtype={given.value}"]).quant
        try:
            base = outline_base(source, config.model, quant, device)
        except RequestError as error:
            yield {"quant": name, "backend": f"refused: {error}", "not": {}}
            continue
        chosen = quickest_backend(base)
        quicker = QUICKEST_FIRST[: QUICKEST_FIRST.index(chosen)]
        yield {
            "quant": name,
            "backend": chosen.value,
            "not": {each.value: why_not(each, base) for each in quicker},
        }


def _captured(device: Any) -> str:
    if device.type != "cuda":
        return "nothing: a processor has no launches to save"
    return (
        "where the backend is cuda, passes and optimizer steps of runs in one process with optim=adamw and "
        "lora.compute_dtype as quant.compute_dtype; the reference computes the others, lora=none among them"
    )


def _lacks(device: Any) -> Iterator[str]:
    """Yield what a run would lack or be refused here, and why."""
    from harness.measure.work import peak_rate

    if device.type != "cuda":
        yield "paged optimizers: refused, a processor has nothing to page to"
        yield "device/utilisation, device/power_watts, energy: missing, a processor does not tell them"
    else:
        told = _nvml(device)["nvml"]
        missing = [name for name in COUNTERS if name not in told]
        if missing:
            yield f"{', '.join(missing)} of the GPU: missing, NVML does not tell them here"
    if peak_rate(device) is None:
        yield "throughput/model_flops_utilisation: missing, no dense bf16 rate of this device is published"
    for package, use in OPTIONAL.items():
        if _optional()[package] is None and not (package == "triton" and device.type != "cuda"):
            yield f"{package} is not installed: {use}"


# As text -----------------------------------------------------------------------------------------


def _text(found: dict[str, Any]) -> Iterator[str]:
    machine, cuda, rates = found["machine"], found["cuda"], found["rates"]
    yield (
        f"machine   {machine['host']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['ram_bytes'] / 2**30:.1f} GiB; {machine['os']}"
    )
    for index, gpu in enumerate(cuda["devices"]):
        told = ", ".join(gpu["nvml"]) or "nothing"
        yield (
            f"gpu {index}     {gpu['name']}, capability {gpu['capability']}, "
            f"{gpu['memory_bytes'] / 2**30:.0f} GiB; driver {gpu['driver'] or '—'}, CUDA {cuda['runtime']}; "
            f"NVML tells {told}"
        )
    if cuda["why_none"]:
        yield f"gpu       none: {cuda['why_none']}"
    yield f"device    {found['device']}"
    yield f"python    {machine['python']}"
    versions = [f"{n} {v}" for n, v in found["packages"].items() if v is not None]
    yield f"packages  {', '.join(versions)}"
    yield f"rates     copy {rates['copy_bytes_per_second'] / 1e9:,.1f} GB/s, read and written"
    products = [f"{kind} {_rate(rate)}" for kind, rate in rates["operations_per_second"].items()]
    yield f"          products of {rates['product']}: {', '.join(products)}"
    published = rates["published_dense_bf16"]
    yield f"          published, dense bf16: {_rate(published)}; kept in {rates['kept']}"
    yield f"backends  of model={found['model']} on {found['device']}"
    alike: dict[str, list[str]] = {}
    for line in found["backends"]:
        why = "".join(f"; not {name}: {reason}" for name, reason in line["not"].items())
        alike.setdefault(line["backend"] + why, []).append(line["quant"])
    for text, names in alike.items():
        yield f"          {', '.join(names)}: {text}"
    yield f"captured  {found['captured']}"
    for line in found["lacks"]:
        yield f"lacks     {line}"


def _rate(operations: float | None) -> str:
    """Print operations per second."""
    if operations is None:
        return "—"
    return (
        f"{operations / 1e12:,.1f} TFLOP/s"
        if operations >= 1e12
        else f"{operations / 1e9:,.1f} GFLOP/s"
    )
