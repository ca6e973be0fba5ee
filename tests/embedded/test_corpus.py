"""The corpus is the same bytes everywhere, its answers are right and its parts never meet."""

import hashlib
import json
import re
import subprocess
import sys
from itertools import islice

import pytest

from harness.embedded.corpus import SKILLS, STORY, Document, Part, documents, part_of, skill_pairs
from harness.embedded.draws import Draws

PINNED = {
    (Part.PRETRAIN, 0): "da6525267fcaa672873610e45fce7376ac722646c81d3dc188550946f8a76721",
    (Part.PRETRAIN, 7): "3defd0aa40c633e1f1a165671ffd711211f9eea156be08e123741dfaf8dfaf05",
    (Part.HELD_OUT, 1): "67068c57d0ffe63890586e43067568f61987b9c3866018576bbf5bf7b3e20f0f",
}


def drawn(part: Part, seed: int, count: int, shard: int = 0) -> list[Document]:
    return list(islice(documents(part, seed=seed, shard=shard), count))


def digest(rows: list[Document]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@pytest.mark.parametrize(("part", "seed"), PINNED)
def test_same_seed_gives_the_same_bytes(part: Part, seed: int) -> None:
    assert digest(drawn(part, seed, 3000)) == PINNED[part, seed]


def test_draws_do_not_depend_on_hash_randomisation() -> None:
    program = (
        "import hashlib, json; from itertools import islice;"
        "from harness.embedded.corpus import Part, documents;"
        "rows = list(islice(documents(Part.PRETRAIN, seed=0), 500));"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


def test_seeds_and_shards_are_independent_streams() -> None:
    base = drawn(Part.PRETRAIN, 0, 200)
    assert base == drawn(Part.PRETRAIN, 0, 200)
    assert base != drawn(Part.PRETRAIN, 1, 200)
    assert base != drawn(Part.PRETRAIN, 0, 200, shard=1)


def test_integer_draws_cover_both_ends_evenly() -> None:
    draws = Draws("ends")
    counts = [0] * 4
    for _ in range(8000):
        counts[draws.integer(0, 3)] += 1
    assert all(1850 < count < 2150 for count in counts)


def test_held_out_texts_never_occur_in_pretraining() -> None:
    seen = {d.prompt or d.response for d in drawn(Part.PRETRAIN, 0, 60_000)}
    held_out = {d.prompt or d.response for d in drawn(Part.HELD_OUT, 1, 10_000)}
    assert not seen & held_out
    # The look means something: held-out texts come from a space small enough that two streams of
    # one part do meet.
    again = {d.prompt or d.response for d in drawn(Part.HELD_OUT, 2, 10_000)}
    assert held_out & again
    assert {part_of(text) for text in held_out} == {Part.HELD_OUT}


def test_every_skill_and_the_stories_occur() -> None:
    assert {d.skill for d in drawn(Part.PRETRAIN, 0, 2000)} == {*SKILLS, STORY}


def test_prompts_are_one_line_so_that_the_newline_separates() -> None:
    for document in drawn(Part.PRETRAIN, 3, 5000):
        assert "\n" not in (document.prompt or "")
        assert "\n" not in document.response
        assert document.response


def solve_arithmetic(prompt: str) -> str:
    first, second = map(int, re.findall(r"\d+", prompt))
    losing = re.search(r"minus| - |away|difference|left|loses|sold", prompt)
    return str(first - second if losing else first + second)


def solve_reverse(prompt: str) -> str:
    shown = re.search(r"(?:: |Read )(.*?)(?:$|\. Reverse it\.| and write it)", prompt)
    assert shown
    separator = ", " if ", " in shown[1] else " "
    return separator.join(reversed(shown[1].split(separator)))


def solve_sort(prompt: str) -> str:
    shown = re.search(r": (.*?)(?:\. Sort \w+\.)?$", prompt)
    assert shown
    separator = ", " if ", " in shown[1] else " "
    items = shown[1].split(separator)
    return separator.join(
        sorted(items, key=lambda item: (int(item) if item.isdigit() else 0, item))
    )


def solve_story_question(prompt: str) -> str:
    """Reads the story again, sentence by sentence, knowing only its verbs."""
    *told, question = re.findall(r"[^.?]+[.?]", prompt)
    place, holder = {}, {}
    for sentence in told:
        words = re.sub(r"^\s*(Then|Later|After that|Soon) ", "", sentence.strip(" .")).split()
        person, last = words[0], words[-1]
        if words[2] == "to":
            place[person] = last
        elif words[1] in ("gave", "handed", "passed"):
            holder[words[3]] = last
        elif words[1] in ("put", "dropped", "left"):
            del holder[last]
        else:
            holder[last] = person
    asked = question.strip(" ?").split()
    things = {person: thing for thing, person in holder.items()}
    for word in asked:
        if question.startswith((" Where", " In which")) and word in place:
            return place[word]
        if word in holder:
            return holder[word]
        if question.startswith((" What", " Which")) and word in things:
            return things[word]
    raise AssertionError(prompt)


@pytest.mark.parametrize(
    ("skill", "solve"),
    [
        ("arithmetic", solve_arithmetic),
        ("reverse", solve_reverse),
        ("sort", solve_sort),
        ("story_question", solve_story_question),
    ],
)
def test_answers_agree_with_an_independent_solver(skill: str, solve) -> None:
    for pair in islice(skill_pairs(skill, Part.PRETRAIN, seed=5), 500):
        assert solve(pair.prompt) == pair.response, pair


def test_an_unknown_skill_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"skill='juggle'.*reverse"):
        next(skill_pairs("juggle", Part.PRETRAIN, seed=0))


def test_corpus_and_tasks_import_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, harness.embedded.corpus, harness.embedded.tasks;"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"
