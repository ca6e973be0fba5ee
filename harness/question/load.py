"""From `sweeps/NAME.yaml` and the command line to one checked question.

Must not import torch, transformers, wandb or optuna.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.config.compose import shipped_directory
from harness.errors import RequestError, near_names
from harness.parsing import home_path
from harness.question.coherence import check_question, with_evaluations
from harness.question.command_line import apply_override
from harness.question.compare import read_compare
from harness.question.draft import Draft, draft_of, read_draft, split_scale
from harness.question.entries import read_axes
from harness.question.goals import read_constraints, read_objectives
from harness.question.keys import NAME, NAME_WANTED
from harness.question.points import Space
from harness.question.question import ANYWHERE, Question
from harness.question.reading import (
    read_confirmation,
    read_launcher,
    read_margin,
    read_plan,
    read_published,
    read_resources,
    read_search,
    read_starts,
    read_study,
)
from harness.records.redact import redact

# Finding -----------------------------------------------------------------------------------------


def sweeps_directory() -> Path:
    """Return where the questions lie that come with the harness."""
    return shipped_directory("sweeps")


def known_sweeps() -> dict[str, str]:
    """Return the question of every file in sweeps/, by the name to give to `harness sweep`."""
    return {name: _question_in(file) for name, file in _files().items()}


def _files() -> dict[str, Path]:
    """Return the files of sweeps/, those of its directories last, by their names."""
    directory = sweeps_directory()
    files = [*sorted(directory.glob("*.yaml")), *sorted(directory.glob("*/*.yaml"))]
    return {file.relative_to(directory).with_suffix("").as_posix(): file for file in files}


def _question_in(file: Path) -> str:
    try:
        return str(read_draft(file, file.name).parts.get("question", ""))
    except RequestError as error:  # one broken file must not hide the others
        return str(error)


def _file_of(name_or_file: str) -> tuple[Path, str]:
    """Return a question's file, and how to call it in a message."""
    as_file = home_path(name_or_file)
    known = _files()
    if name_or_file in known:
        return known[name_or_file], f"sweeps/{name_or_file}.yaml"
    if as_file.suffix in (".yaml", ".yml") or "/" in name_or_file:
        if not as_file.is_file():
            raise RequestError(
                f"{name_or_file}: no such file{near_names(name_or_file, known)}; ready questions: "
                f"{', '.join(known)}"
            )
        return as_file, name_or_file
    raise RequestError(
        f"no question is called {name_or_file!r}{near_names(name_or_file, known)}; give a file "
        f"(NAME.yaml) or one of {', '.join(known)}"
    )


# Reading -----------------------------------------------------------------------------------------


def load_question(name_or_file: str, overrides: Sequence[str]) -> Question:
    """Return the question of a file, or of a name in sweeps/, as the overrides change it.

    `scale=NAME` takes one of the file's scales, the first without it; `apply_override` says what an
    override can be. Raises RequestError, before anything is composed but the
    base, with the file, the key, what was given, near names, and what would work.
    """
    scale, others = split_scale(overrides)
    file, shown = _file_of(name_or_file)
    return _question_of_draft(read_draft(file, shown, scale), others)


def question_text(question: Question) -> str:
    """Return a question as YAML that `harness sweep FILE` takes."""
    return yaml.safe_dump(question.tree(), sort_keys=False, allow_unicode=True)


def question_of(tree: Mapping[str, Any], name: str, overrides: Sequence[str]) -> Question:
    """Return the question that `Question.tree` gave, as the overrides change it."""
    scale, others = split_scale(overrides)
    return _question_of_draft(draft_of(tree, f"the study {name}: ", name, scale), others)


def _question_of_draft(draft: Draft, overrides: Sequence[str]) -> Question:
    for text in overrides:
        apply_override(draft, text)
    question = _whole(draft)
    check_question(question, draft)
    _refuse_secrets(
        [axis.described for axis in question.space.axes], draft.place("space") + "space"
    )
    if question.launcher is not None:
        _refuse_secrets(question.launcher.setup or (), "launcher.setup")
    if question.study.is_shared:
        refuse_secrets_with_effect(question)
    return question


def refuse_secrets_with_effect(question: Question) -> None:
    """Refuse a base that asks for something else without its secrets, where what is kept is asked again."""
    _refuse_secrets([o for o in question.base if not o.startswith(ANYWHERE)], "base")


def _refuse_secrets(texts: Sequence[str], where: str) -> None:
    for text in texts:
        if redact(text) != text:
            raise RequestError(
                f"{where}: {text} holds what looks like a secret, and is written to the study and the "
                "report; leave it out, or name a file that holds it"
            )


def _whole(draft: Draft) -> Question:
    parts, place = draft.parts, draft.place
    space = Space(read_axes(draft.entries))
    search = read_search(parts.get("search") or {}, place("search"))
    base = with_evaluations(draft.base, space, search, place("base"))
    margin = read_margin(parts.get("margin"), place("margin"))
    return Question(
        name=_name(draft),
        question=_text(draft, "question"),
        expect=_text(draft, "expect"),
        base=tuple(base),
        space=space,
        search=read_starts(search, parts.get("search") or {}, space, place("search")),
        objectives=read_objectives(parts.get("objective"), place("objective")),
        constraints=read_constraints(parts.get("constraints"), place("constraints")),
        compare=read_compare(
            parts.get("compare"), space, place("compare"), _changed_axes(draft, space)
        ),
        margin=margin,
        confirm=read_confirmation(parts.get("confirm"), search, margin, place("confirm")),
        resources=read_resources(parts.get("resources"), place("resources")),
        study=read_study(parts.get("study"), place("study")),
        published=read_published(parts.get("published"), place("published")),
        plan=read_plan(parts.get("plan"), place("plan")),
        launcher=read_launcher(parts.get("launcher"), place("launcher")),
    )


def _changed_axes(draft: Draft, space: Space) -> set[str]:
    """Return the axes that the command line has fixed or replaced, or made impossible by a condition."""
    gone = draft.entries.axes.keys() - {axis.key for axis in space.axes}
    return {*gone, *draft.entries.fixed, *draft.entries.replaced}


def _name(draft: Draft) -> str:
    name = str(draft.parts.get("name"))
    if not re.fullmatch(NAME, name, re.ASCII):
        raise RequestError(
            f"{draft.place('name')}name={name!r} cannot name a directory and a study; {NAME_WANTED}"
        )
    _refuse_secrets([name], f"{draft.place('name')}name")
    return name


def _text(draft: Draft, key: str) -> str:
    value = draft.parts.get(key)
    if key == "expect" and value in (None, ""):
        return ""
    if not isinstance(value, str) or not value.strip():
        given = "nothing" if value is None else repr(value)
        wanted = "asked" if key == "question" else "expected"
        raise RequestError(
            f"{draft.place(key)}{key} must say in words what is {wanted}, got {given}"
        )
    return " ".join(value.split())
