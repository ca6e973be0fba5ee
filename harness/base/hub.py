"""Which commit a Hugging Face id means now: one question to the hub, or else what the cache holds.

Must not import torch or transformers. Left to themselves they would ask for every file, with half a minute
of retries where there is no network, and a branch that moves would pass for the model it was before.
"""

from dataclasses import dataclass
from pathlib import Path

from harness.errors import RequestError, first_line

_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """One commit of a model on the hub."""

    commit: str
    snapshot: Path | None
    """Its directory in the Hugging Face cache, to load from where the hub cannot be reached."""


def resolve_hub_model(name: str, revision: str | None) -> HubModel:
    """Return the commit that `revision` (none: main) of `name` means.

    Raises RequestError if the hub does not know it, or cannot be reached and the cache does not hold it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    shown = name if revision is None else f"{name}, model.revision={revision}"
    try:
        commit = HfApi().model_info(name, revision=revision, timeout=_SECONDS).sha
    except HFValidationError as error:
        raise RequestError(f"model={name} is no Hugging Face id: {first_line(error)}") from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"model={name} is neither a directory nor a model on the Hugging Face hub that you can see; "
            "give `embedded`, a directory, an id, or log in with `hf auth login` if it is private"
        ) from error
    except NoRevision as error:
        raise RequestError(
            f"model={shown}: the hub has the model but no such branch, tag or commit"
        ) from error
    except Exception as error:  # no network, in whatever words the HTTP client has for it
        return _cached(name, revision, shown, first_line(error))
    assert commit is not None, name
    return HubModel(commit=commit, snapshot=None)


def fetched_bytes(name: str, revision: str | None, kind: str) -> int | None:
    """Return the bytes of what is loaded of a `model` or `dataset` on the hub; None: not known."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().repo_info(
            name, revision=revision, repo_type=kind, timeout=_SECONDS, files_metadata=True
        )
    except Exception:  # no network: whoever fetches it will say so
        return None
    files = getattr(info, "siblings", None) or ()  # which a kernel's repository lacks
    sizes: dict[str, int] = {each.rfilename: each.size or 0 for each in files}
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
    for suffix in weights[:2]:  # what transformers loads of a repository that has several kinds
        if kind == "model" and any(file.endswith(suffix) for file in sizes):
            others = tuple(each for each in weights if each != suffix)
            return sum(size for file, size in sizes.items() if not file.endswith(others))
    return sum(sizes.values())


def _cached(name: str, revision: str | None, shown: str, reason: str) -> HubModel:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    file = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(file, str):
        raise RequestError(
            f"model={shown} is no directory here, not in the Hugging Face cache ({HF_HUB_CACHE}), and the "
            f"hub cannot be reached ({reason}); offline, `embedded`, a directory with config.json, "
            "weights and tokenizer, or a model that the cache holds work"
        )
    snapshot = Path(file).parent
    return HubModel(commit=snapshot.name, snapshot=snapshot)
