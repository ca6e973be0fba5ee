"""A stand-in for the Hugging Face hub on loopback: takes a repository, its large files and a commit."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REGULAR = (".md", ".json", ".jinja", ".gitattributes")


@dataclass
class Hub:
    """What was sent."""

    url: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    """Paths of the requests that made one."""
    large: dict[str, bytes] = field(default_factory=dict)
    """By the hash that LFS has for them."""
    refuses: int | None = None
    """Status of every answer, where the hub takes nothing."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON of one request."""
        if self.refuses is not None:
            return self.refuses, {"error": "no"}
        match method, path.split("?")[0]:
            case "POST", "/api/repos/create":
                self.created.append(json.loads(body))
                name = self.created[-1]["organization"] + "/" + self.created[-1]["name"]
                where = "datasets/" if self.created[-1].get("type") == "dataset" else ""
                return 200, {"url": f"{self.url}/{where}{name}", "id": "1", "name": name}
            case "POST", "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}
            case "POST", preupload if "/preupload/" in preupload:
                files = json.loads(body)["files"]
                modes = [
                    {
                        "path": each["path"],
                        "uploadMode": "regular" if each["path"].endswith(REGULAR) else "lfs",
                        "shouldIgnore": False,
                    }
                    for each in files
                ]
                return 200, {"files": modes}
            case "POST", lfs if lfs.endswith("/info/lfs/objects/batch"):
                objects = [
                    {
                        **each,
                        "authenticated": True,
                        "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}},
                    }
                    for each in json.loads(body)["objects"]
                ]
                return 200, {"transfer": "basic", "objects": objects}
            case "PUT", put if put.startswith("/lfs/"):
                self.large[put.rpartition("/")[2]] = body
                return 200, {}
            case "POST", commit if "/commit/" in commit:
                self._commit(body)
                self.commits.append(commit.removeprefix("/"))
                return 200, {
                    "commitUrl": f"{self.url}/me/it/commit/1",
                    "commitOid": "1" * 40,
                    "success": True,
                }
            case "GET", _:
                return 200, {"id": "me/it", "sha": "0" * 40, "siblings": [], "private": True}
            case _:
                return 404, {"error": f"{method} {path}"}

    def _commit(self, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a hub until the end of the context."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self._chunks()
            hub.tokens.add(self.headers.get("Authorization") or "")
            status, tree = hub.answer(self.command, self.path, body)
            content = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunks(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return b""
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            return found

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
