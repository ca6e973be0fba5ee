"""What the launcher and the ranks of one run leave for each other on disk. Imports no torch."""

import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.request import Request

REFUSED, STOPPED = 2, 130
"""Exit codes of the leading rank, as of the command: the request was wrong; stopped at once."""
NO_MEMORY = 3
"""Exit code of any rank of a sharded run that has run out of memory in the middle of a pass."""


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """A directory that lives as long as the ranks do."""

    directory: Path

    @property
    def leader(self) -> Path:
        """Holds the leader's process id from its first moment on."""
        return self.directory / "leader"

    @property
    def refusal(self) -> Path:
        """Holds why the request was refused, if it was."""
        return self.directory / "refusal"

    def ask(self, request: Request) -> None:
        """Leave the request and the command line that it came from."""
        (self.directory / "request").write_bytes(pickle.dumps((request, sys.argv)))

    def asked(self) -> tuple[Request, list[str]]:
        """Return the request and its command line."""
        return pickle.loads((self.directory / "request").read_bytes())


def rank_log(request: Request, rank: int) -> Path:
    """Return where the output of one rank goes, library messages and tracebacks."""
    return request.directory.path / "ranks" / f"{rank}.log"
