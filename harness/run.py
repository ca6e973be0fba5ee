"""`python -m harness.run [-m] [override…]`: `harness run`, spelt as a Hydra application is started."""

import sys

from harness.cli.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
