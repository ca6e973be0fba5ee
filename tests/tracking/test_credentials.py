"""`wandb_online` is refused without credentials exactly where wandb itself would find none."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from harness.config.schema import TrackerConfig, TrackerName
from harness.errors import RequestError
from harness.tracking import check_tracker

REPOSITORY = Path(__file__).resolve().parents[2]
ONLINE = TrackerConfig(name=TrackerName.wandb_online)
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which nobody has ever logged in."""
    return {
        "NETRC": str(tmp_path / "netrc"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_DIR": str(tmp_path),
    }


def wandb_finds_a_key(environ: dict[str, str]) -> bool:
    """Ask wandb's own code, in a process with this environment."""
    code = """
        import wandb
        from wandb.sdk.lib import wbauth
        host = wbauth.HostUrl(wandb.setup().settings.base_url)
        auth = wbauth.authenticate_session(
            host=host, source="test", no_offline=True, input_timeout=0.01, referrer=""
        )
        print(auth is not None)
    """
    clean = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    process = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        env=clean | environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return process.stdout.strip() == "True"


def test_offline_and_none_need_nothing(environ: dict[str, str]) -> None:
    check_tracker(TrackerConfig(name=TrackerName.wandb_offline), environ)
    check_tracker(TrackerConfig(name=TrackerName.none), environ)


def test_the_refusal_says_what_was_looked_for_and_what_works(environ: dict[str, str]) -> None:
    with pytest.raises(RequestError) as refusal:
        check_tracker(ONLINE, environ)
    message = str(refusal.value)
    for part in ("WANDB_API_KEY", environ["NETRC"], "api.wandb.ai", environ["WANDB_CONFIG_DIR"]):
        assert part in message
    assert "tracker=wandb_offline" in message
    assert not wandb_finds_a_key(environ)


def test_a_key_in_the_environment(environ: dict[str, str]) -> None:
    environ["WANDB_API_KEY"] = KEY
    check_tracker(ONLINE, environ)
    assert wandb_finds_a_key(environ)


def test_a_key_in_the_netrc_file_of_the_right_host(environ: dict[str, str]) -> None:
    Path(environ["NETRC"]).write_text(f"machine api.wandb.ai login user password {KEY}\n")
    check_tracker(ONLINE, environ)
    assert wandb_finds_a_key(environ)
    environ["WANDB_BASE_URL"] = "https://wandb.example.org"
    with pytest.raises(RequestError, match=r"wandb\.example\.org"):
        check_tracker(ONLINE, environ)
    assert not wandb_finds_a_key(environ)


def test_a_key_in_a_settings_file(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text(f"[default]\napi_key = {KEY}\n")
    check_tracker(ONLINE, environ)
    assert wandb_finds_a_key(environ)


def test_a_truncated_key_is_refused_without_being_shown(environ: dict[str, str]) -> None:
    environ["WANDB_API_KEY"] = KEY[:20]
    with pytest.raises(RequestError, match="has 20 characters, a W&B key has 40") as refusal:
        check_tracker(ONLINE, environ)
    assert KEY[:20] not in str(refusal.value)
    assert not wandb_finds_a_key(environ)


def test_two_kinds_of_credentials_are_refused(environ: dict[str, str]) -> None:
    environ |= {"WANDB_API_KEY": KEY, "WANDB_IDENTITY_TOKEN_FILE": "/nowhere"}
    with pytest.raises(RequestError, match="both set"):
        check_tracker(ONLINE, environ)
    del environ["WANDB_API_KEY"]
    with pytest.raises(RequestError, match="is not a file"):
        check_tracker(ONLINE, environ)


def test_broken_files_count_as_empty(environ: dict[str, str], tmp_path: Path) -> None:
    Path(environ["NETRC"]).write_text("machine\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text("no section\n")
    with pytest.raises(RequestError, match="without W&B credentials"):
        check_tracker(ONLINE, environ)


def test_checking_imports_nothing_heavy() -> None:
    code = "import sys, harness.tracking; print({'torch', 'wandb'} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert process.stdout == "set()\n"
