"""The fine-tuning tasks: pinned bytes, right answers, and splits that share no prompt."""

import hashlib
import json
import re
from itertools import islice

import pytest

from harness.embedded.corpus import Part, documents
from harness.embedded.tasks import TASKS, TaskSplits, in_dialect, make_task
from pretraining.pretrain import Recipe

SIZES = {"train_rows": 2048, "validation_rows": 256, "test_rows": 256}
PINNED = {
    "facts": "cad598025d950152816c41dc2fa9d8e447ba638a978af7a7cc5ab7f2e3d19626",
    "rule": "8c3322ecdfebbd481555e8cd4dddfb029c7bcafc4d8834c01710c6606c29c451",
    "dialect": "6c7f80cea6c3418af1cbe37b321076eb6738be119ac86cf7f0b123d36a4f9b61",
    "skills": "40e1f1f7f3006a38181b72a729cbda75bf8efb395935c5a93976d6ff7c9774ef",
}


def task(name: str, seed: int = 0) -> TaskSplits:
    return make_task(name, **SIZES, seed=seed)


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_gives_the_same_bytes(name: str) -> None:
    assert hashlib.sha256(json.dumps(task(name)).encode()).hexdigest() == PINNED[name]


@pytest.mark.parametrize("name", TASKS)
def test_sizes_are_as_asked_and_seeds_differ(name: str) -> None:
    splits = task(name)
    assert [len(rows) for rows in splits] == [2048, 256, 256]
    assert splits.test != task(name, seed=1).test


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_prompt_occurs_twice_in_or_across_splits(name: str, seed: int) -> None:
    prompts = [pair.prompt for rows in task(name, seed) for pair in rows]
    assert len(prompts) == len(set(prompts))


def test_no_task_prompt_occurs_in_the_pretraining_or_held_out_data() -> None:
    prompts = {pair.prompt for name in TASKS for rows in task(name) for pair in rows}
    for document in islice(documents(Part.HELD_OUT, seed=1), 5000):
        assert document.prompt not in prompts
    assert not prompts & pretraining_prompts(steps=400)


@pytest.mark.slow
def test_no_task_prompt_occurs_anywhere_in_the_whole_pretraining() -> None:
    prompts = {pair.prompt for name in TASKS for rows in task(name) for pair in rows}
    assert not prompts & pretraining_prompts(steps=Recipe().steps)


def pretraining_prompts(steps: int) -> set[str | None]:
    """The prompts that the first `steps` steps of the pretraining read, and then some."""
    read: set[str | None] = set()
    for step in range(steps):
        # A step's 4096 tokens hold about 150 documents; 300 are more than it can pack.
        shard = islice(documents(Part.PRETRAIN, seed=Recipe().seed, shard=step), 300)
        read.update(document.prompt for document in shard)
    return read


def test_one_seeds_test_prompts_are_not_another_seeds_training_prompts() -> None:
    for name in ("rule", "dialect", "skills"):
        test = {pair.prompt for pair in task(name, seed=0).test}
        assert not test & {pair.prompt for pair in task(name, seed=1).train}


def test_facts_ask_for_trained_associations_in_new_phrasings() -> None:
    def key(prompt: str) -> str:
        found = re.search(r"[A-Z]\w+'s \w+", prompt)
        assert found
        return found[0]

    splits = task("facts")
    known: dict[str, str] = {}
    for prompt, answer in splits.train:
        assert known.setdefault(key(prompt), answer) == answer
    assert len(known) == 512
    for prompt, answer in splits.validation + splits.test:
        assert known[key(prompt)] == answer
    frames = [{p.prompt.replace(key(p.prompt), "_") for p in rows} for rows in splits]
    assert not frames[0] & frames[1]
    assert not frames[0] & frames[2]
    assert not frames[1] & frames[2]


def test_facts_have_answers_that_hardly_any_two_share() -> None:
    answers = {pair.response for pair in task("facts").train}
    assert len(answers) > 500  # Uniform over a million, so hardly any two agree.


def test_rule_answers_are_the_list_backwards_and_its_length() -> None:
    for prompt, answer in task("rule").test:
        shown = re.search(r": (.*?)(?:\. Zib it\.)?$", prompt)
        assert shown
        words = re.findall(r"\w+", shown[1])
        assert answer.endswith(f" = {len(words)}")
        assert re.findall(r"\w+", answer) == [*words[::-1], str(len(words))]


def test_dialect_answers_are_the_plain_answers_in_a_storytellers_voice() -> None:
    numbers = 0
    for prompt, answer in task("dialect").test:
        assert answer.startswith(("There were ", "There was the "))
        assert answer.endswith(", good friends.")
        sums = re.fullmatch(r"What is (\d+) plus (\d+)\?|Add (\d+) and (\d+)\.", prompt)
        if sums:
            numbers += 1
            total = sum(int(number) for number in sums.groups() if number)
            assert answer == f"There were {total}, good friends."
        if prompt.startswith(("Reverse the list: ", "Please reverse: ")):
            words = re.findall(r"\w+", prompt.split(": ")[1])
            assert answer == f"There were {' and '.join(words[::-1])}, good friends."
    assert numbers


@pytest.mark.parametrize(
    ("plain", "spoken"),
    [
        ("42", "There were 42, good friends."),
        ("fox", "There was the fox, good friends."),
        ("fox, sun", "There were fox and sun, good friends."),
        ("3 5 8", "There were 3 and 5 and 8, good friends."),
    ],
)
def test_dialect_forms(plain: str, spoken: str) -> None:
    assert in_dialect(plain) == spoken


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("poetry", {}, r"task='poetry'.*facts, rule, dialect"),
        ("rule", {"test_rows": 0}, r"test_rows=0.*at least 1"),
        ("facts", {"train_rows": 2047}, r"train_rows=2047.*multiple of 4"),
        ("facts", {"train_rows": 400_000}, r"train_rows=400000.*12032"),
        ("facts", {"test_rows": 5000}, r"test_rows=5000.*at most 2048"),
    ],
)
def test_impossible_requests_say_what_works(name: str, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(name, **(SIZES | changed), seed=0)


def test_skills_are_the_bases_own_prompts_and_answers() -> None:
    documents_seen = {d.prompt: d.response for d in islice(documents(Part.TASK_TEST, seed=3), 3000)}
    asked = {pair.prompt: pair.response for pair in task("skills").test}
    shared = asked.keys() & documents_seen.keys()
    assert shared
    assert all(asked[prompt] == documents_seen[prompt] for prompt in shared)
