"""What every result of the bench says beside its figures: when, by what command, on what machine and load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from harness.records.provenance import collect_provenance
from harness.records.run_directory import utc_now, write_text

BENCH = Path(__file__).parent


def load() -> float:
    """Return the load average of the last minute: what else runs, if asked before anything is measured."""
    return psutil.getloadavg()[0]


def circumstances(load_before: float) -> dict[str, Any]:
    """Return when and on what was measured."""
    return {
        "measured_at": utc_now(),
        "provenance": collect_provenance().as_tree(),
        "load_average_before": load_before,
    }


def keep(name: str, found: Mapping[str, Any], load_before: float) -> None:
    """Write a result to bench/results/NAME.json with its circumstances, and say so."""
    result = {**circumstances(load_before), **found}
    write_text(BENCH / "results" / f"{name}.json", json.dumps(result, indent=2) + "\n")
    print(f"\nload {load_before:.1f} before, {load():.1f} after; in bench/results/{name}.json")


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Print a line of JSON, and add it to a file with what it was measured on."""
    print(json.dumps(row), flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps({**row, "provenance": collect_provenance().as_tree()}) + "\n")
