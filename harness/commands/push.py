"""`harness push`: an exported folder to the Hugging Face hub, through huggingface_hub, on request only."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import RequestError, RunFailed, first_line
from harness.parsing import home_path
from harness.records.redact import redact

PUSH_HELP = """\
usage: harness push DIR OWNER/NAME [--data] [--public] [--json]

Uploads a folder that `harness export` has written to the Hugging Face hub, or with --data one that `harness
data … --out` has, into a private repository unless --public says otherwise. The token is what `hf auth login`
or HF_TOKEN gives; HF_ENDPOINT names another hub. A folder in whose texts something looks like a key or a
password is refused, and nothing is sent.
"""

_TEXTS = (".json", ".jsonl", ".jinja", ".md", ".txt", ".yaml", ".model")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


_MAKERS = {"model": "harness export", "dataset": "harness data … --out"}
"""By the hub's kind of repository, the command that writes what goes there."""


def push_command(words: Sequence[str], *, kind: str, public: bool, as_json: bool) -> int:
    """Upload one folder to a repository of a `kind`; return the exit code."""
    if len(words) != 2:
        raise RequestError("harness push needs a folder and OWNER/NAME; see harness push --help")
    folder, repository = home_path(words[0]), words[1]
    if not _ID.fullmatch(repository):
        raise RequestError(f"{repository!r} is no repository of the hub; give OWNER/NAME")
    if not (folder / "README.md").is_file():
        raise RequestError(
            f"{folder} is no folder that `{_MAKERS[kind]}` has written: it has no README.md"
        )
    _check_kind(folder, kind)
    _refuse_secrets(folder)
    url = upload(folder, repository, kind=kind, public=public)
    print(json.dumps({"url": url}) if as_json else url)
    return 0


def _check_kind(folder: Path, kind: str) -> None:
    """Refuse rows as a model, and a model as rows, by what the card says that it describes."""
    from huggingface_hub import DatasetCard

    try:
        card: Any = DatasetCard.load(folder / "README.md", ignore_metadata_errors=True)
    except Exception as error:  # no UTF-8, no YAML, or what else a file of this name may be
        raise RequestError(
            f"{folder / 'README.md'} cannot be read as a card: {' '.join(str(error).split())}"
        ) from error
    holds = card.data.to_dict()
    if kind == "model" and "configs" in holds:
        raise RequestError(f"{folder} holds rows, by its card; push them with --data")
    if kind == "dataset" and "configs" not in holds:
        raise RequestError(
            f"{folder} holds no rows, by its card, and --data pushes what `{_MAKERS[kind]}` has written"
        )


def _refuse_secrets(folder: Path) -> None:
    """Refuse a folder in which a text holds what looks like a secret. Raises RequestError."""
    for file in sorted(folder.rglob("*")):
        if file.suffix not in _TEXTS or not file.is_file() or file.name == "tokenizer.json":
            continue  # a vocabulary has every word there is
        text = file.read_text(encoding="utf-8", errors="replace")
        for number, (line, shown) in enumerate(
            zip(text.split("\n"), redact(text).split("\n"), strict=False), 1
        ):
            if line != shown:
                raise RequestError(
                    f"{file}:{number} has what looks like a key or a password; take it out, and push again"
                )


def upload(folder: Path, repository: str, *, kind: str, public: bool) -> str:
    """Create the repository if it is not there, and send the folder in one commit; return its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi()
    try:
        made = api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            commit_message=f"Upload what {_MAKERS[kind]} of QLoRA Harness has written",
        )
    except LocalTokenNotFoundError as error:
        raise RequestError(
            "the hub wants a token; log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except Exception as error:  # refused, or no network, whatever words the client has
        raise RunFailed(
            f"the hub has not taken {folder} as {repository}: {redact(first_line(error))}"
        ) from error
    return str(made)
