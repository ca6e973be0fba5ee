"""The documents are true of the repository: the links, files, targets and commands in them exist."""

import re
import shlex
from pathlib import Path

import pytest

from harness.cli.options import COMMANDS, FLAGS_OF
from harness.config.compose import group_options, known_keys
from harness.question.question import PARTS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), ROOT / "bench" / "LOG.md")
    if path.name not in ("CHANGELOG.md", "LOG.md")  # they speak of files as they were
)
README_BYTES = 18_000


def texts(pattern: str, document: Path) -> list[str]:
    """Return what a pattern finds in a document, each once."""
    return sorted(set(re.findall(pattern, document.read_text(encoding="utf-8"))))


def braces_expanded(name: str) -> list[str]:
    """Return what a shell makes of a name with at most one pair of braces."""
    before, opened, rest = name.partition("{")
    among, _, after = rest.partition("}")
    return [f"{before}{each}{after}" for each in among.split(",")] if opened else [name]


def anchor(heading: str) -> str:
    """Return the name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in texts(r"\]\(([^)]+)\)", document):
        if target.startswith("http"):
            continue
        name, _, part = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), target
        assert ROOT in file.resolve().parents, f"{target} is outside the repository"
        if part:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in map(anchor, headings), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_modules_that_are_named_exist(document):
    rooms = "harness|analysis|bench|tests|conf|sweeps|docs|examples|pretraining"
    for written in texts(rf"(?<![\w/.-])((?:{rooms})/[\w./{{}},-]*[\w}}]/?)", document):
        for name in braces_expanded(written):
            if not name.startswith(("bench/.", "conf/quant/mine")):
                assert (ROOT / name).exists(), name
    for module in texts(r"python -m ([\w.]+)", document):
        path = ROOT / module.replace(".", "/")
        known = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        assert known or module in ("pytest", "harness"), module
    assert "../shared" not in document.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_that_are_named_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in texts(r"(?:`|^    )make ((?:[a-z-]+ ?)+)", document):
        assert set(words.split()) <= targets, words


def commands(document: Path) -> list[str]:
    """Return the command lines of `harness` in a document's blocks of code, continued lines joined."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^    (?:\$ )?(?:\.venv/bin/)?harness (.*)$", text, re.MULTILINE)


REFUSED = ("lora.rnk",)  # shown for the message


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_have_options_groups_and_keys_that_exist(document):
    sections = (*PARTS, "plan", "scale")
    known = {*known_keys(), *group_options(), *PARTS, *REFUSED}
    for line in commands(document):
        command, *words = shlex.split(line.partition(" #")[0])
        assert command in COMMANDS, line
        for word in words:
            key = word.partition("=")[0]
            if word.startswith("-"):
                assert key in FLAGS_OF[command], line
            elif "=" in word:
                assert key in known or key.partition(".")[0] in sections, line
