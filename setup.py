"""Puts conf/ and sweeps/, which lie beside the package in a checkout, into the package in a wheel.

Everything else about the distribution is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TREES = ("conf", "sweeps")


class BuildWithTrees(build_py):
    """Copies the trees of YAML files to harness/conf and harness/sweeps of what is built."""

    def run(self) -> None:
        """Build as usual; an editable install keeps reading the checkout's own trees."""
        super().run()
        if self.editable_mode:
            return
        for tree in TREES:
            target = Path(self.build_lib) / "harness" / tree
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(tree, target)


setup(cmdclass={"build_py": BuildWithTrees})
