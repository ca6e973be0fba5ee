"""A stand-in for a W&B server on loopback: answers the GraphQL that wandb.Api asks when runs are read."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0" * 40
_NO_FILES = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}


@dataclass(kw_only=True)
class HeldRun:
    """A run as the server has it."""

    run_id: str
    group: str | None
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    history: list[dict[str, Any]]
    """Rows with `_step`."""


@dataclass
class StandIn:
    """What is served, and what was asked."""

    runs: list[HeldRun]
    asked: list[str] = field(default_factory=list)

    def answer(self, operation: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data of one GraphQL operation."""
        self.asked.append(operation)
        match operation:
            case "Viewer" | "GetDefaultEntity":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}}
            case "Runs":
                return {"project": self._page(variables)}
            case "RunFiles":
                return {"project": {"internalId": "1", "run": {"fileCount": 0, "files": _NO_FILES}}}
            case _:
                return self._history(operation, variables)

    def _page(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        wanted = json.loads(variables.get("filters") or "{}").get("group")
        runs = [run for run in self.runs if wanted in (None, run.group)]
        start, size = int(variables.get("cursor") or 0), variables.get("perPage", 50)
        page = runs[start : start + size]
        return {
            "internalId": "1",
            "runCount": len(runs),
            "readOnly": False,
            "runs": {
                "edges": [
                    {"node": _node(run), "cursor": str(start + i + 1)} for i, run in enumerate(page)
                ],
                "pageInfo": {
                    "endCursor": str(start + len(page)),
                    "hasNextPage": start + len(page) < len(runs),
                },
            },
        }

    def _history(self, operation: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Answer what wandb-core asks for a scan: no exported files, all rows live, page by page."""
        name = variables.get("runName") or variables.get("run") or variables["name"]
        (run,) = [run for run in self.runs if run.run_id == name]
        match operation:
            case "RunHistoryKeys":
                held: dict[str, Any] = {"historyKeys": _node(run)["historyKeys"]}
            case "RunParquetHistory":
                live = [{"_step": row["_step"]} for row in run.history]
                held = {"parquetHistory": {"parquetUrls": [], "liveData": live}}
            case "HistoryPage":
                steps = range(variables["minStep"], variables["maxStep"])
                held = {
                    "history": [json.dumps(row) for row in run.history if row["_step"] in steps]
                }
            case _:
                raise AssertionError(f"the stand-in does not know {operation}")
        return {"project": {"run": held}}


def _node(run: HeldRun) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "projectId": "1",
        "name": run.run_id,
        "displayName": run.run_id,
        "tags": [],
        "sweepName": None,
        "state": "finished",
        "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
        "group": run.group,
        "jobType": "search",
        "commit": None,
        "readOnly": False,
        "createdAt": "2026-01-01T00:00:00Z",
        "heartbeatAt": "2026-01-01T00:00:00Z",
        "description": "",
        "notes": "",
        "systemMetrics": "{}",
        "summaryMetrics": json.dumps(run.summary),
        "historyLineCount": len(run.history),
        "user": {"name": "me", "username": "me"},
        "historyKeys": {
            "lastStep": max((row["_step"] for row in run.history), default=-1),
            "sets": [],
            "keys": {},
        },
    }


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """Serve on a free port of loopback and give the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            data: dict[str, Any] = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                name = asked.get("operationName") or _name(asked["query"])
                data = stand_in.answer(name, asked.get("variables") or {})
            self._send({"data": data})

        def _send(self, tree: Any) -> None:
            out = json.dumps(tree).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _name(query: str) -> str:
    words = query.replace("(", " ").split()
    return words[words.index("query") + 1]
