"""What `wandb sync` reads in the offline files of a sweep: every name of every run, as it reaches a server.

    python -m bench.wandb_sync SWEEP [paths.out=DIRECTORY]

wandb's own client reads the .wandb files and sends them to a stand-in on loopback, which keeps what it is
sent: the rows of the history and the last summary of each run. Prints, by role, which names have arrived, and
what is missing of those that the records say (bench.tracked); ends with 1 where something is.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.tracked import flat_summary, names_of_every_row, tracked

KEY = "0" * 40
AT_ONCE = 20
"""Runs of one call of wandb."""
_SECONDS = 300


@dataclass(slots=True)
class Received:
    """What the server was sent of one run."""

    group: str | None = None
    job_type: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = False


class Receiver:
    """Answers what wandb asks while it uploads runs, and keeps what it sends."""

    def __init__(self) -> None:
        self.runs: dict[str, Received] = {}

    def answer(self, operation: str, variables: dict[str, Any], address: str) -> dict[str, Any]:
        """Return the data of one GraphQL operation."""
        match operation:
            case "UpsertBucket":
                run = self.runs.setdefault(variables["name"], Received())
                run.group = variables.get("groupName") or run.group
                run.job_type = variables.get("jobType") or run.job_type
                project = {"id": "p", "name": "qlora", "entity": {"id": "e", "name": "me"}}
                bucket = {"id": "b", "name": variables["name"], "project": project, "config": "{}"}
                bucket |= {"displayName": variables["name"], "historyLineCount": 0}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "CreateArtifact":
                artifact = {"id": "a", "state": "COMMITTED"}
                artifact["artifactSequence"] = {"latestArtifact": {"id": "a"}}  # pyright: ignore[reportArgumentType]
                return {"createArtifact": {"artifact": artifact}}
            case "CreateRunFiles":
                files = [{"name": n, "uploadUrl": f"{address}/{n}"} for n in variables["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}}
            case _:
                return {}

    def take(self, run_id: str, tree: dict[str, Any]) -> None:
        """Keep a piece of a run's stream."""
        run, files = self.runs.setdefault(run_id, Received()), tree.get("files") or {}
        for line in (files.get("wandb-history.jsonl") or {}).get("content", ()):
            run.rows.append(json.loads(line))
        for line in (files.get("wandb-summary.json") or {}).get("content", ()):
            run.summary = json.loads(line)
        run.is_complete = run.is_complete or bool(tree.get("complete"))


@contextmanager
def receiving(receiver: Receiver) -> Iterator[str]:
    """Serve on a free port of loopback and give the address."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            tree: dict[str, Any] = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                address = f"http://127.0.0.1:{self.server.server_port}"  # pyright: ignore[reportAttributeAccessIssue]
                answered = receiver.answer(
                    asked["operationName"], asked.get("variables") or {}, address
                )
                tree = {"data": answered}
            elif self.path.endswith("/file_stream"):
                receiver.take(self.path.split("/")[-2], json.loads(body))
            out = json.dumps(tree).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        do_POST = do_PUT = do_GET = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def synced(directories: Sequence[Path]) -> dict[str, Received]:
    """Let `wandb sync` upload offline runs to a server of this process; return what has arrived, by run."""
    receiver = Receiver()
    with receiving(receiver) as address, tempfile.TemporaryDirectory() as logs:
        environment = {n: v for n, v in os.environ.items() if not n.startswith("WANDB_")}
        environment |= {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
        environment |= {"WANDB_ERROR_REPORTING": "false", "WANDB_DIR": logs}
        # Copies: wandb marks what it has sent, and would not send it to its own server any more.
        ignored = shutil.ignore_patterns("*.synced")
        copies = [shutil.copytree(d, Path(logs) / d.name, ignore=ignored) for d in directories]
        for start in range(0, len(copies), AT_ONCE):
            subprocess.run(
                [
                    *(sys.executable, "-m", "wandb", "sync", "--yes", "-e", "me", "-p", "qlora"),
                    *map(str, copies[start : start + AT_ONCE]),
                ],
                env=environment,
                cwd=logs,
                check=True,
                capture_output=True,
                timeout=_SECONDS,
            )
    return receiver.runs


def main(words: Sequence[str]) -> int:
    """Upload, compare, print; return 1 where something is missing."""
    places = [word.removeprefix("paths.out=") for word in words if word.startswith("paths.out=")]
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(places[-1] if places else "out")
    runs = tracked(out, names[0])
    directories = [
        offline
        for run in runs
        for offline in sorted((out / "runs" / run.run_id / "wandb").glob("offline-run-*"))
    ]
    received, gone = synced(directories), []
    for role in sorted({run.role for run in runs}):
        has: Counter[str] = Counter()
        mine = [run for run in runs if run.role == role]
        for run in mine:
            got = received.get(run.run_id, Received())
            last = set() if not got.rows else {n for n, v in got.rows[-1].items() if v is not None}
            series = names_of_every_row(got.rows) | last
            summary = set(flat_summary(got.summary))
            has.update(f"series {name}" for name in run.expected["W&B: series"] & series)
            has.update(f"summary {name}" for name in run.expected["W&B: summary"] & summary)
            gone += [(run.run_id, "series", n) for n in run.expected["W&B: series"] - series]
            gone += [(run.run_id, "summary", n) for n in run.expected["W&B: summary"] - summary]
            if (got.group, got.job_type, got.is_complete) != (names[0], role, True):
                gone.append((run.run_id, "run", f"{got.group} {got.job_type} {got.is_complete}"))
        print(f"{role}: {len(mine)} runs, each with group {names[0]} and job type {role}")
        print(
            "  " + ", ".join(n if has[n] == len(mine) else f"{n} ({has[n]})" for n in sorted(has))
        )
    print(f"missing: {len(gone) or 'none'}, of {len(runs)} runs")
    for line in sorted(gone):
        print("  " + "  ".join(line))
    return int(bool(gone) or not runs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
