"""The live page: what it shows, whom it answers, and that a sweep obeys it; once in a real browser."""

import http.client
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from harness.cli.main import dispatch
from harness.commands.live import LiveServer
from harness.errors import RequestError
from harness.question.load import load_question
from harness.records.record import RunStatus, read_records
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus, read_state
from tests.commands.forked import Command
from tests.sweeping.browser import Browser, find_browser

EVIL = "<img src=x onerror=document.title='gone'> `rank`"


class Visitor:
    """A browser that does as it is told."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.address = urlsplit(server.url)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection(
            self.address.hostname or "", self.address.port, timeout=60
        )
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        found = answer.status, answer.read().decode(), answer.headers
        connection.close()
        return found

    def view(self) -> dict[str, Any]:
        code, text, _ = self.ask("GET", f"{self.address.path}state")
        assert code == 200, text
        return json.loads(text)

    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "X-Harness-Token": self.server.token}

    def tell(self, **asked: Any) -> tuple[int, str]:
        body = json.dumps(asked)
        code, text, _ = self.ask("POST", f"{self.address.path}tell", body, self.headers())
        answer = json.loads(text)
        return code, answer.get("said") or answer["refused"]


@pytest.fixture
def visit() -> Iterator[Callable[[Path], Visitor]]:
    """Serve the live page of a sweep's file, and return who visits it."""
    servers = []

    def serve(file: Path) -> Visitor:
        server = LiveServer(file.parent / "out", file.stem, 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return Visitor(server)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def finished(ask) -> Path:
    """The file of a sweep that has finished."""
    file = ask(question=EVIL, expect="</script><b>yes</b>")
    assert dispatch(["sweep", str(file)]) == 0
    return file


def state_of(file: Path) -> SweepState:
    return read_state(SweepDirectory(file.parent / "out", file.stem))


def training(file: Path) -> list[str]:
    try:
        return [run.run_id for run in state_of(file).runs if run.step and run.status == "training"]
    except RequestError:
        return []


def test_the_page_says_how_a_sweep_stands_and_refuses_in_words_what_cannot_be(finished, visit):
    visitor = visit(finished)
    view = visitor.view()
    assert (view["status"], view["question"], view["is_driven"]) == ("finished", EVIL, False)
    assert [run["status"] for run in view["runs"]] == ["completed"] * 2
    assert {each["point"] for each in view["leaders"]} == {"lora.rank=1", "lora.rank=2"}
    (curve,) = [each for each in view["curves"] if each["title"] == "train loss"]
    assert [len(line["points"]) for line in curve["lines"]] == [8, 8]

    run = view["runs"][0]["run_id"]
    for asked, words in (
        ({"kind": "burn"}, "give a kind, one of stop_run"),
        ({"kind": "stop_run"}, "stop_run is asked with run_id (str)"),
        ({"kind": "more_trials", "more": True}, "more_trials is asked with more (int)"),
        ({"kind": "stop_run", "run_id": run}, "the sweep is finished"),
        ({"kind": "stop_sweep"}, "the sweep is finished"),
        ({"kind": "more_trials", "more": 0}, "0 trials cannot be added"),
        ({"kind": "more_trials", "more": 3}, "a grid has every point"),
        ({"kind": "add_value", "axis": "lora.rnk", "value": "4"}, "near names: lora.rank"),
        ({"kind": "add_value", "axis": "lora.rank", "value": "2"}, "lora.rank has 2 already"),
        ({"kind": "add_value", "axis": "lora.rank", "value": "99"}, "smallest target dimension"),
        ({"kind": "clone", "run_id": "x", "overrides": "seed=1"}, "no run 'x' of this sweep"),
        ({"kind": "clone", "run_id": run, "overrides": " "}, "give what is to be different"),
        ({"kind": "clone", "run_id": run, "overrides": "'"}, "cannot be read"),
        ({"kind": "clone", "run_id": run, "overrides": "lora.rnk=1"}, "lora.rank"),
        ({"kind": "clone", "run_id": run, "overrides": "paths.out=/x"}, "stay as they are"),
        ({"kind": "clone", "run_id": run, "overrides": "hydra.run.dir=/x"}, "stay as they are"),
        ({"kind": "clone", "run_id": run, "overrides": "lora.rank=2"}, "which the sweep has"),
        ({"kind": "clone", "run_id": run, "overrides": "lora.rank=99"}, "smallest target"),
    ):
        code, said = visitor.tell(**asked)
        assert (code, words in said) == (400, True), (asked, said)
    directory = SweepDirectory(finished.parent / "out", finished.stem)
    assert not directory.instructions.exists(), "what was refused is not written down"

    code, said = visitor.tell(kind="add_value", axis="lora.rank", value="4")
    assert (code, f"`harness sweep {finished.stem}` goes on" in said) == (200, True)
    assert "asked on the live page to try lora.rank=4, too" in directory.log.read_text()
    assert visitor.view()["axes"] == [
        {"key": "lora.rank", "described": "lora.rank: choice(1, 2, 4)"}
    ]


def test_only_our_page_on_this_machine_is_answered(finished, visit):
    visitor = visit(finished)
    path, host = visitor.address.path, visitor.address.netloc
    assert visitor.address.hostname == "127.0.0.1"
    assert len(visitor.server.token) >= 32
    for method, asked, headers in (
        ("GET", "/", {}),
        ("GET", "/state", {}),
        ("GET", f"/{'x' * 32}/", {}),
        ("GET", path.rstrip("/"), {}),
        ("GET", f"{path}../../etc/passwd", {}),
        ("GET", path, {"Host": "evil.example:80"}),
        ("GET", f"{path}tell", {}),
        ("POST", f"{path}state", visitor.headers()),
    ):
        code, text, _ = visitor.ask(method, asked, "{}" if method == "POST" else None, headers)
        assert (code, visitor.server.token in text) == (404, False), (method, asked)
    for foreign in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},  # what a form of another page can send
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"X-Harness-Token": "guessed"},
    ):
        headers = visitor.headers() | foreign
        code, _, _ = visitor.ask("POST", f"{path}tell", '{"kind": "stop_sweep"}', headers)
        assert code == 403, foreign
    own = visitor.headers() | {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for body, expected in ((b"{", 400), (b"\xff", 400), (b"[" * 9000, 400), (b"x" * 10_001, 413)):
        code, text, _ = visitor.ask("POST", f"{path}tell", body, own)
        assert (code, "Traceback" in text) == (expected, False), body[:10]
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        code, text, _ = visitor.ask(method, path)
        assert (code, "<" in text) == (501, False)
    code, text, headers = visitor.ask("GET", path)
    assert code == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["Referrer-Policy"] == "no-referrer"
    assert not SweepDirectory(finished.parent / "out", finished.stem).instructions.exists()


def test_a_running_sweep_obeys_and_what_it_was_told_outlives_it(ask, visit, tmp_path):
    file = ask(base=("optim.steps=3000",), resources={"devices": "cpu", "cohort": 2})
    sweep = Command(["sweep", str(file)], tmp_path / "said")
    sweep.wait_until(lambda: len(training(file)) == 2)
    visitor, (stopped, other) = visit(file), training(file)

    code, said = visitor.tell(kind="stop_run", run_id=stopped)
    assert (code, said) == (200, f"The sweep is told to stop run {stopped}.")
    sweep.wait_until(lambda: stopped not in training(file))
    assert training(file) == [other], "the other goes on"
    assert visitor.tell(kind="add_value", axis="lora.rank", value="4")[0] == 200
    few = "optim.steps=3 seed=5"
    assert visitor.tell(kind="clone", run_id=other, overrides=few)[0] == 200
    sweep.wait_until(lambda: any(run.role == "clone" for run in state_of(file).runs))
    sweep.wait_until(lambda: len(state_of(file).trials) == 3)
    assert visitor.tell(kind="stop_sweep") == (200, "The sweep is told to stop the sweep.")
    assert sweep.wait() == 130
    state = state_of(file)
    assert state.status is SweepStatus.interrupted
    log = SweepDirectory(file.parent / "out", file.stem).log.read_text()
    assert log.index(f"told to stop run {stopped}") < log.index("told to stop the sweep")

    records = {each.run_id: each for each in read_records(file.parent / "out")[0]}
    assert records[stopped].status is RunStatus.pruned
    assert records[other].status is RunStatus.interrupted
    kept = SweepDirectory(file.parent / "out", file.stem).question
    assert load_question(str(kept), []).space.axes[0].described == "lora.rank: choice(1, 2, 4)"


@pytest.mark.browser
def test_in_a_browser(ask, visit, tmp_path):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: the live page was not tried in a browser")
    file = ask(
        question=EVIL,
        base=("optim.steps=3000", "eval.every_steps=5"),
        resources={"devices": "cpu", "cohort": 2},
    )
    sweep = Command(["sweep", str(file)], tmp_path / "said")
    sweep.wait_until(lambda: len(training(file)) == 2)
    visitor, browser = visit(file), Browser(program, tmp_path / "profile")
    try:
        browser.open(visitor.server.url)
        browser.wait_until("document.querySelectorAll('#runs tr').length === 2")
        assert browser.run("document.title") == f"{file.stem}, live"
        shown = browser.run("document.getElementById('question').textContent")
        assert shown == EVIL.replace("`", "")
        assert browser.run("document.querySelector('#question code').textContent") == "rank"
        assert browser.run("document.querySelectorAll('img').length") == 0
        browser.wait_until("document.querySelectorAll('.curve polyline').length >= 2")
        steps = "document.querySelector('#runs tr td:nth-child(6)').textContent"
        before = browser.run(steps)
        browser.wait_until(f"{steps} !== {json.dumps(before)}")  # it goes on by itself

        stop = "document.querySelector('#runs button[data-act=stop]')"
        stopped = browser.run(f"{stop}.dataset.run")
        browser.run(f"{stop}.click()")
        assert stopped in training(file), "a click that ends something is asked for twice"
        browser.run(f"{stop}.click()")
        browser.wait_until("document.getElementById('said').textContent.includes('stop run')")
        sweep.wait_until(lambda: stopped not in training(file))
        browser.wait_until("document.getElementById('runs').innerText.includes('pruned')")

        browser.run("document.getElementById('value').value = '4'")
        browser.run("document.getElementById('form-value').requestSubmit()")
        browser.wait_until("document.getElementById('described').textContent.includes('1, 2, 4')")
        browser.run("document.querySelector('#runs button[data-act=clone]').click()")
        assert browser.run("document.getElementById('clone-of').value") in training(file)
        browser.run("document.getElementById('changes').value = 'seed=5 optim.steps=10'")
        browser.run("document.getElementById('form-clone').requestSubmit()")
        browser.wait_until("document.getElementById('runs').innerText.includes('clone')")
        browser.run("document.getElementById('stop-sweep').click()")
        browser.run("document.getElementById('stop-sweep').click()")
        assert sweep.wait() == 130
        browser.wait_until("document.getElementById('status').textContent === 'interrupted'")
        assert browser.run("document.getElementById('stop-sweep').disabled") is True
        wrong = ("Runtime.exceptionThrown", "Log.entryAdded")
        assert [each for each in browser.events if each["method"] in wrong] == []
        wide = "document.documentElement.scrollWidth <= window.innerWidth"
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=390,
            height=844,
            deviceScaleFactor=1,
            mobile=True,
        )
        assert browser.run(wide), "nothing is wider than a phone"
    finally:
        browser.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["small", "--serve", "--watch"], "--serve goes with --port and --json only, got --watch"),
        (["small", "--port", "80"], "--serve goes with --port and --json only, got --port alone"),
        (["--serve"], "takes one sweep's name, got none"),
        (["one", "two", "--serve"], "takes one sweep's name, got one, two"),
        (["small", "--serve", "--port", "65536"], "--port 65536 is no port"),
        (["small", "--serve"], "no sweep has run at"),
    ],
)
def test_what_does_not_go_with_the_live_page_is_refused(tmp_path, capsys, words, said):
    assert dispatch(["report", *words, f"paths.out={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


def test_the_command_serves_until_a_signal_ends_it(finished, tmp_path):
    words = ["report", finished.stem, "--serve", "--json", f"paths.out={finished.parent / 'out'}"]
    command = Command(words, tmp_path / "served")
    command.wait_until(lambda: command.files[0].exists() and bool(command.files[0].read_text()))
    url = urlsplit(json.loads(command.files[0].read_text())["url"])
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    connection.request("GET", f"{url.path}state")
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["status"]) == (200, "finished")
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait() == 0
    assert url.path.strip("/") not in command.files[1].read_text()
