"""One probe in a process of its own, for `harness plan --probe`; standard input has its configuration."""

import json
import sys

from harness.commands.run import train_request
from harness.config.compose import config_of_tree
from harness.records.record import RunStatus
from harness.request import make_request

_MEASURED = (RunStatus.completed, RunStatus.out_of_memory)


def main() -> None:
    """Train the run that standard input describes, as a probe."""
    request = make_request(config_of_tree(json.load(sys.stdin)))
    record = train_request(request, is_probe=True)
    sys.exit(0 if record.status in _MEASURED else 1)


if __name__ == "__main__":
    main()
