"""Text of what a base was trained on: a file, or the embedded base's own corpus. Must not import torch."""

from functools import lru_cache
from itertools import islice

from harness.config.schema import EMBEDDED_DOMAIN, DataConfig, DataForm, EvalConfig
from harness.data.example import Example
from harness.data.files import FileVersion, file_version, read_file
from harness.data.records import RecordForm
from harness.evals.choices import evenly_spaced

_KEY = "eval.base_domain"
_FORM = RecordForm.of(DataConfig(form=DataForm.text))


def check_base_domain(config: EvalConfig) -> None:
    """Refuse a file that cannot be read as text. Raises DataError."""
    if config.base_domain is not None:
        domain_documents(
            config.base_domain, config.base_domain_rows, domain_version(config.base_domain)
        )


def domain_version(place: str) -> FileVersion | None:
    """Return which version of its file is meant; None for the embedded corpus."""
    return None if place == EMBEDDED_DOMAIN else file_version(place, _KEY)


@lru_cache(maxsize=4)
def domain_documents(
    place: str, count: int | None, version: FileVersion | None
) -> tuple[Example, ...]:
    """Return the documents, of a file at most `count`, evenly spaced."""
    if version is None:
        from harness.embedded.corpus import Part, documents

        found = islice(documents(Part.HELD_OUT, seed=0), count)
        return tuple(Example(text=document.text) for document in found)
    examples = read_file(place, _FORM, _KEY).examples
    return tuple(examples[index] for index in evenly_spaced(len(examples), count))
