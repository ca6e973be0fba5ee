"""A member of a sweep as a job sees it: counts to a number, keeps its count when it is told to stop.

`python counting_member.py FILE NUMBER` goes on from FILE; exit code 0 at the number, 130 after SIGTERM. It
takes its time, so that there is a moment to stop it in, unless it goes on after a stop.
"""

import os
import signal
import sys
import time
from pathlib import Path

PAUSE_SECONDS = 0.02


def main() -> int:
    """Count; write each beginning and each stop into FILE.log."""
    file, last = Path(sys.argv[1]), int(sys.argv[2])
    told = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    log = file.with_suffix(".log").open("a", buffering=1)
    count = int(file.read_text()) if file.exists() else 0
    pause = 0 if count else PAUSE_SECONDS
    print(f"begins at {count} as {os.getpid()}", file=log)
    while count < last and not told:
        time.sleep(pause)
        count += 1
    file.write_text(str(count))
    print(f"{'stops' if told else 'ends'} at {count}", file=log)
    return 130 if told else 0


if __name__ == "__main__":
    sys.exit(main())
