"""Whether W&B could log in, judged before anything heavy is imported. Must not import wandb or torch."""

import configparser
import importlib.util
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never
from urllib.parse import urlsplit

from harness.config.schema import TrackerConfig, TrackerName
from harness.errors import RequestError
from harness.parsing import home_path

_DEFAULT_URL = "https://api.wandb.ai"
_MIN_KEY = 40  # characters after an optional `local-`; wandb refuses shorter keys at init


def check_tracker(config: TrackerConfig, environ: Mapping[str, str] | None = None) -> None:
    """Raise RequestError for `wandb_online` without credentials where wandb looks for them.

    And for `tensorboard` without the package of that name.

    The places are those of wandb 0.31 (sdk/lib/wbauth): environment, netrc file, settings files. Whether
    the server accepts them is not asked.
    """
    match config.name:
        case TrackerName.none | TrackerName.wandb_offline:
            return
        case TrackerName.tensorboard:
            if importlib.util.find_spec("tensorboard") is None:
                raise RequestError(
                    "tracker=tensorboard needs the package tensorboard: pip install "
                    "'qlora-harness[tensorboard]'"
                )
        case TrackerName.wandb_online:
            _check_credentials(os.environ if environ is None else environ)
        case unknown:
            assert_never(unknown)


def _check_credentials(environ: Mapping[str, str]) -> None:
    key = environ.get("WANDB_API_KEY", "")
    token_file = environ.get("WANDB_IDENTITY_TOKEN_FILE", "")
    if key and token_file:
        raise RequestError("WANDB_API_KEY and WANDB_IDENTITY_TOKEN_FILE are both set; unset one")
    if key:
        if len(key.split("-", 1)[-1]) < _MIN_KEY and key.count(".") != 2:  # a JWT has two dots
            raise RequestError(
                f"WANDB_API_KEY has {len(key)} characters, a W&B key has {_MIN_KEY} or more; "
                "copy it again from your W&B settings, or use tracker=wandb_offline"
            )
        return
    if token_file:
        if not home_path(token_file).is_file():
            raise RequestError(f"WANDB_IDENTITY_TOKEN_FILE={token_file} is not a file")
        return
    settings_files, netrc_file = _settings_files(environ), _netrc_file(environ)
    settings = _settings(settings_files)
    host = urlsplit(environ.get("WANDB_BASE_URL") or settings.get("base_url", _DEFAULT_URL)).netloc
    if not (_in_netrc(netrc_file, host) or settings.get("api_key")):
        places = ", ".join(str(path) for path in settings_files)
        raise RequestError(
            "tracker=wandb_online without W&B credentials: WANDB_API_KEY is not set, "
            f"{netrc_file} has no entry for {host}, and none of {places} has an api_key. "
            "Run `wandb login` or set WANDB_API_KEY; tracker=wandb_offline needs neither"
        )


def _settings_files(environ: Mapping[str, str]) -> list[Path]:
    system = home_path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    return [system / "settings", Path(environ.get("WANDB_DIR") or ".") / "wandb" / "settings"]


def _settings(files: list[Path]) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(files)
    except (configparser.Error, UnicodeDecodeError):  # wandb, too, takes such a file as empty
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _netrc_file(environ: Mapping[str, str]) -> Path:
    if given := environ.get("NETRC"):
        return home_path(given)
    usual, windows = home_path("~/.netrc"), home_path("~/_netrc")
    return windows if windows.exists() and not usual.exists() else usual


def _in_netrc(path: Path, host: str) -> bool:
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return entry is not None and bool(entry[2])
