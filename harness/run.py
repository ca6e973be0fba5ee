"""`python -m harness.run [-m] [override…]`: `harness run`, spelt as a Hydra application is started."""

import sys

from harness.cli.main import main

if (
    __name__ == "harness.run"
):  # an import would put this module in the place of the function `harness.run`
    raise ImportError("harness.run is a function; this file is for `python -m harness.run`")

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
