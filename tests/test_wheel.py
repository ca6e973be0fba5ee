"""What `pip install` of a built wheel gives: everything that the commands need, without a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("harness", "analysis", "conf", "sweeps", "pyproject.toml", "setup.py", "MANIFEST.in")
SOURCES += ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this code, built from a copy by the backend that pip would ask."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return copy / "dist" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """A directory with the wheel's packages and nothing of the checkout."""
    directory = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def run(installed: Path, directory: Path, *command: str) -> str:
    """Run Python in an empty directory, where only the installed packages are found before the checkout's."""
    directory.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_that_is_read_at_run_time(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for tree in ("conf", "sweeps"):
        for file in (ROOT / tree).rglob("*.yaml"):
            assert f"harness/{file.relative_to(ROOT)}" in names
    for package in ("harness", "analysis"):
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert str(file.relative_to(ROOT)) in names
    assert not {name.split("/")[0] for name in names} & {"conf", "sweeps", "tests", "bench"}
    (licence,) = [name for name in names if name.endswith("LICENSE")]
    assert "Apache License" in zipfile.ZipFile(wheel).read(licence).decode()


def test_an_installed_harness_finds_its_groups_and_its_questions(installed, tmp_path):
    code = (
        "import harness; from harness.cli.main import dispatch; print(harness.__file__)\n"
        "dispatch(['run', '--cfg', 'job', 'quant=int4'])\n"
        "dispatch(['sweep'])\n"
        "dispatch(['sweep', 'demo', '--dry-run'])\n"
    )
    shown = run(installed, tmp_path, "-c", code)
    assert shown.startswith(str(installed))
    assert "format: int4" in shown
    assert all(file.stem in shown for file in (ROOT / "sweeps").glob("*.yaml"))
    assert "grid of 6 cells" in shown


def test_an_installed_harness_trains_and_reads_its_records(installed, tmp_path):
    code = (
        "import harness\n"
        "record = harness.run(['tracker=none', 'optim.steps=2', 'eval=loss', 'data.train_rows=100'])\n"
        "print(record.status.value, len(harness.load_runs()), record.provenance['git'])\n"
    )
    assert run(installed, tmp_path, "-c", code).startswith("completed 1 ")
    assert (tmp_path / "out" / "runs").is_dir()
