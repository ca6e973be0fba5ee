"""`harness report NAME --serve`: a page of a sweep that is up to date, and on which it is told what to do.

Serves this machine alone, and only who knows the token in the address: an address of another host's name
(DNS rebinding), a page of another origin, a form without our header are refused before anything is read.
"""

import hmac
import json
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from analysis.page.live import live_document
from harness.commands.live_orders import tell
from harness.commands.live_view import live_view
from harness.errors import RequestError
from harness.records.redact import message
from harness.sweeping.state import SweepDirectory, read_state
from harness.training.stop import stop_on_signals

LOOPBACK = "127.0.0.1"
_HOSTS = (LOOPBACK, "localhost")
"""Names by which this machine calls itself, also where a tunnel gives another port."""
MAX_BODY = 10_000
TIMEOUT_SECONDS = 20.0
"""Silence after which a connection is closed."""
STATE, TELL = "state", "tell"


def serve(out: Path, name: str, *, port: int, as_json: bool) -> int:
    """Serve the live page of a sweep until a signal ends it; returns 0.

    Raises RequestError where there is no such sweep, or where the port is taken.
    """
    state = read_state(SweepDirectory(out, name))
    try:
        server = LiveServer(out, name, port)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise RequestError(
            f"--port {port} cannot be had: {said}; leave it out for a free one"
        ) from None
    with stop_on_signals() as stop, server:
        threading.Thread(target=server.serve_forever, name="live page", daemon=True).start()
        if as_json:
            print(json.dumps({"name": name, "url": server.url}), flush=True)
        else:
            print(f"{state.name} is {state.status.value}; its live page: {server.url}", flush=True)
            print(
                "harness: whoever has this address can steer the sweep; Ctrl-C ends the page, and the sweep "
                "goes on",
                file=sys.stderr,
            )
        ended = threading.Event()
        while not stop:
            ended.wait(0.2)
        server.shutdown()
    return 0


class LiveServer(ThreadingHTTPServer):
    """The pages and the one place where instructions are taken."""

    daemon_threads = True

    def __init__(self, out: Path, name: str, port: int) -> None:
        self.out, self.sweep = out, name
        self.token = secrets.token_urlsafe(24)
        self.telling = threading.Lock()
        """Instructions are taken one by one: each is judged by what those before it have asked for."""
        super().__init__((LOOPBACK, port), _Handler)
        self.url = f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away."""


class _Handler(BaseHTTPRequestHandler):
    """One request. Whatever happens, the answer is a sentence."""

    server: LiveServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "harness", ""
    timeout = TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Answer with the page, or with how the sweep stands."""
        path = self._path()
        if path == "":
            page, policy = live_document(self.server.sweep)
            self._answer(200, page, "text/html", policy)
        elif path == STATE:
            self._answer_json(lambda: live_view(self.server.out, self.server.sweep))
        elif path is not None:
            self._answer(404, "there is nothing here")

    def do_POST(self) -> None:
        """Take an instruction."""
        path = self._path()
        if path is None:
            return
        if path != TELL:
            self._answer(404, "there is nothing here")
            return
        refusal = self._foreign()
        if refusal is not None:
            self._answer(403, refusal)
            return
        body = self._body()
        if body is not None:
            self._answer_json(lambda: {"said": self._tell(body)})

    def _tell(self, body: bytes) -> str:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise RequestError("that is no JSON") from None
        with self.server.telling:
            return tell(self.server.out, self.server.sweep, asked)

    # Who asks ------------------------------------------------------------------------------------

    def _path(self) -> str | None:
        """Return what is asked for behind the token; None where the request was answered: a stranger's."""
        host = (self.headers.get("Host") or "").rpartition(":")
        name = host[0] or host[2]
        token, slash, rest = self.path.split("?")[0].removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(), self.server.token.encode())
        if name not in _HOSTS or not known or not slash:
            self._answer(404, "there is nothing here: the address that was printed has a token")
            return None
        return rest

    def _foreign(self) -> str | None:
        """Say why an instruction is not from our page; None where it is."""
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers.get('Host')}":
            return "another page asks for this"
        if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            return "another page asks for this"
        if self.headers.get_content_type() != "application/json":
            return "an instruction is application/json"
        if not hmac.compare_digest(
            (self.headers.get("X-Harness-Token") or "").encode(), self.server.token.encode()
        ):
            return "an instruction has the token in its header X-Harness-Token, too"
        return None

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length") or ""
        if not length.isascii() or not length.isdigit() or int(length[:9]) > MAX_BODY:
            self._answer(413, f"an instruction has at most {MAX_BODY} bytes, and says how many")
            return None
        return self.rfile.read(int(length))

    # Answering -----------------------------------------------------------------------------------

    def _answer_json(self, make: Any) -> None:
        try:
            code, value = 200, make()
        except RequestError as error:
            code, value = 400, {"refused": message(str(error))}
        except OSError as error:
            code, value = 500, {"refused": message(f"{error.strerror or 'the disk refuses'}")}
        except Exception as error:  # a page shows no traceback
            code, value = (
                500,
                {"refused": f"a fault of the harness itself ({type(error).__name__})"},
            )
        self._answer(code, json.dumps(value, allow_nan=False), "application/json")

    def _answer(
        self, code: int, text: str, kind: str = "text/plain", policy: str = "default-src 'none'"
    ) -> None:
        content = text.encode("utf-8", "backslashreplace")
        if code != 200:
            self.close_connection = True  # what else was sent is not read
        self.send_response(code)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", policy),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the library refuses, a malformed request or another method, as everything else."""
        self._answer(int(code), "that is no request that is answered here")

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: addresses hold the token."""
