"""The peers' own environment, made by the bench: `bench/.peers`, from `requirements.txt`, with pip."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
DIRECTORY = Path(__file__).parents[1] / ".peers"

_VERSIONS = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({n: m.version(n) for n in "
    "('torch', 'transformers', 'peft', 'bitsandbytes', 'trl', 'accelerate', 'datasets', 'hydra-core')}))"
)


def ready_python(directory: Path = DIRECTORY) -> Path:
    """Return the peers' interpreter; makes the environment where it is not there or not of these pins."""
    python = directory / "bin" / "python"
    stamp = directory / ".installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing the peers into {directory}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
    quiet = ["--quiet", "--disable-pip-version-check"]
    constraints = Path(__file__).parents[2] / "constraints.txt"
    pins = ["-c", str(constraints), "-r", str(REQUIREMENTS)]
    subprocess.run([python, "-m", "pip", "install", *quiet, *pins], check=True)
    (directory / ".gitignore").write_text("*\n")
    stamp.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return what is installed there."""
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
