"""The embedded model, its language and questions in it for the tests of evaluation."""

from itertools import islice

import pytest

from harness.embedded.corpus import SKILLS, STORY, Part, documents, skill_pairs


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Keep torch on one thread: the matrices are tiny, and tests run side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(pretrained):
    """The embedded model's tokenizer: 1024 tokens, BOS 1, EOS 2."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pretrained)


@pytest.fixture(scope="session")
def model(pretrained):
    """The embedded model in float32 and evaluation mode; context 512."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def stories() -> list[str]:
    """Forty held-out stories of different lengths."""
    held_out = documents(Part.HELD_OUT, seed=5)
    return list(islice((d.response for d in held_out if d.skill == STORY), 40))


@pytest.fixture(scope="session")
def arc_rows() -> list[object]:
    """Held-out questions of every skill in ARC's form; wrong choices are answers of other questions."""
    pairs = [
        pair for skill in SKILLS for pair in islice(skill_pairs(skill, Part.HELD_OUT, seed=6), 4)
    ]
    responses = [pair.response for pair in pairs]
    rows: list[object] = []
    for index, pair in enumerate(pairs):
        others = [r for r in responses[index:] + responses[:index] if r != pair.response]
        texts = [*dict.fromkeys(others)][:3]
        texts.insert(index % 4, pair.response)
        choices = {"text": texts, "label": ["A", "B", "C", "D"]}
        rows.append({"question": pair.prompt, "choices": choices, "answerKey": "ABCD"[index % 4]})
    return rows


@pytest.fixture(scope="session")
def mmlu_rows() -> list[object]:
    """Six questions for each of nine subjects in MMLU's form."""
    rows: list[object] = []
    for subject in sorted(SKILLS)[:9]:
        pairs = list(islice(skill_pairs(subject, Part.HELD_OUT, seed=7), 6))
        for index, pair in enumerate(pairs):
            wrong = [f"{pair.response} {word}" for word in ("hat", "cat", "pan")]
            wrong.insert(index % 4, pair.response)
            row = {"question": pair.prompt, "choices": wrong, "answer": index % 4}
            rows.append({**row, "subject": f"held_out_{subject}"})
    return rows
