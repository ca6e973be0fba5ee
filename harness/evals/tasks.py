"""Tasks of lm-evaluation-harness that a configuration names, found and judged without importing it.

A name is one of its own tasks, groups or tags; what ends in .yaml or holds a slash is a file that defines
one, or a directory of such files. Must not import torch or lm_eval: each takes seconds.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from harness.config.schema import EvalConfig
from harness.errors import DataError, RequestError, near_names
from harness.parsing import Unreadable, home_path, read_yaml

_SUFFIXES = (".yaml", ".yml")
_MOST_FILES = 10_000
"""Of one local data set; more are no evaluation."""
_LOADERS = {"json", "csv", "text", "parquet", "arrow"}
"""What a definition names in place of a data set where it reads files."""


def check_tasks(config: EvalConfig) -> None:
    """Refuse tasks that are not there.

    Raises:
        RequestError: lm-evaluation-harness is not installed, or does not know a name.
        DataError: a file that is missing, cannot be read, or defines no task.
    """
    if not config.tasks:
        return
    if find_spec("lm_eval") is None:
        raise RequestError(
            f"eval.tasks={config.tasks} are tasks of lm-evaluation-harness, which is not installed; "
            "pip install 'qlora-harness[lm_eval]'"
        )
    for name in config.tasks:
        if is_local(name):
            task_files(name)
        elif _defining(name) is None:
            raise RequestError(
                f"eval.tasks: {name!r} is no task, group or tag of lm-evaluation-harness {tasks_version()}"
                f"{near_names(name, _registered())}; `lm_eval ls tasks` lists them, and a file of your own "
                "ends in .yaml"
            )


def tasks_version() -> str:
    """Return the version of lm-evaluation-harness, which its prompts and scores go by."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return "—"


def tasks_fingerprint(config: EvalConfig) -> str | None:
    """Return what tells the tasks of a configuration from others: the library's version, contents of files.

    None without tasks. `check_tasks` has seen that they are there.
    """
    if not config.tasks:
        return None
    told = [tasks_version(), *(_contents(n) if is_local(n) else n for n in config.tasks)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def is_local(name: str) -> bool:
    """Whether a name is that of a file or a directory."""
    return "/" in name or name.endswith(_SUFFIXES)


def task_files(name: str) -> list[Path]:
    """Return the files that define the tasks of a local name. Raises DataError as `check_tasks` does."""
    path = home_path(name)
    if path.is_dir():
        found = [file for file in sorted(path.glob("*.yaml")) if _definition(file) is not None]
        if not found:
            raise DataError(
                f"eval.tasks: {name} has no .yaml file with a task of lm-evaluation-harness"
            )
        return found
    if not path.is_file():
        names = [each.name for each in path.parent.glob("*.y*ml")]
        raise DataError(f"eval.tasks: {name}: no such file{near_names(path.name, names)}")
    if _definition(path) is None:
        raise DataError(
            f"eval.tasks: {name} has neither `task:` nor `group:`, the name of what it defines"
        )
    return [path]


class _Functions(yaml.SafeLoader):
    """Reads `!function module.name` as a text: nothing is imported to look at a definition."""


def _function(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


_Functions.add_multi_constructor("!", _function)


def _tree(file: Path) -> Any:
    try:
        return read_yaml(file.read_bytes(), _Functions)
    except (OSError, Unreadable) as error:
        raise DataError(f"eval.tasks: {file} cannot be read: {error}") from None


def _definition(file: Path) -> dict[str, Any] | None:
    """Return the mapping in a file that names a task or a group; None where it is a part of others."""
    tree = _tree(file)
    return tree if isinstance(tree, dict) and ("task" in tree or "group" in tree) else None


# Contents ----------------------------------------------------------------------------------------


def _contents(name: str) -> str:
    """Return a digest of everything that the files of a local name say or point to."""
    found: dict[Path, None] = {}
    for file in task_files(name):
        _collect(file, found)
    return hashlib.sha256(b"".join(_digest(file) for file in found)).hexdigest()


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _collect(file: Path, found: dict[Path, None]) -> None:
    """Add a file, and those that it names: includes, functions, data."""
    file = file.resolve()
    if file in found:
        return
    found[file] = None
    if file.suffix in _SUFFIXES or file.name.endswith("_yaml"):
        for text in _texts(_tree(file)):
            for named in _named(text, file.parent):
                _collect(named, found)


def _texts(tree: Any) -> Iterator[str]:
    match tree:
        case str():
            yield tree
        case dict():
            for value in tree.values():
                yield from _texts(value)
        case list():
            for value in tree:
                yield from _texts(value)
        case _:
            pass


def _named(text: str, directory: Path) -> list[Path]:
    """Return the files that a text of a definition stands for: beside it or where the command runs."""
    if not text or len(text) > 1000 or "\n" in text:
        return []
    module = text.rpartition(".")[0].replace(".", "/")
    places = [directory / f"{module}.py"] if module else []
    places += [directory / text, Path(text)]
    for place in places:
        try:
            if place.is_file():
                return [place]
            if "/" in text and place.is_dir():
                return [each for each in sorted(place.rglob("*")) if each.is_file()][:_MOST_FILES]
        except OSError:  # a text too long for a name
            continue
    return []


# Names of its own --------------------------------------------------------------------------------


def _own_files() -> list[Path]:
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    return list(Path(spec.submodule_search_locations[0], "tasks").rglob("*.yaml"))


def task_data(name: str) -> list[str]:
    """Return the hub's data sets that one of the library's own tasks reads, or those of its directory.

    A group's tasks lie beside it, as a rule; what it takes from elsewhere is not found.
    """
    file = _defining(name)
    if file is None:
        return []
    return _data_sets([file]) or _data_sets(sorted(file.parent.rglob("*yaml")))


def _data_sets(files: Iterable[Path]) -> list[str]:
    pattern = re.compile(rb"^dataset_path:\s*[\"']?([\w.-]+(?:/[\w.-]+)?)", re.M)
    found = [path.decode() for file in files for path in pattern.findall(file.read_bytes())]
    return [path for path in dict.fromkeys(found) if path not in _LOADERS]


@cache
def _defining(name: str) -> Path | None:
    """Return the file whose definition names it; files called alike are looked at first, a second all.

    lm-evaluation-harness's own index parses 14,000 files, which takes ten times as long.
    """
    word = re.escape(name).encode()
    pattern = re.compile(rb"^(?:(?:task|group|tag):|\s*-)\s*[\"']?" + word + rb"[\"']?\s*$", re.M)
    files = sorted(_own_files(), key=lambda file: file.stem != name and file.parent.name != name)
    return next((file for file in files if pattern.search(file.read_bytes())), None)


@cache
def _registered() -> list[str]:
    """Return the names of its tasks and groups."""
    pattern = re.compile(rb"^(?:task|group):\s*[\"']?([\w.+-]+)[\"']?\s*$", re.M)
    names = {name for file in _own_files() for name in pattern.findall(file.read_bytes())}
    return sorted(name.decode() for name in names)
