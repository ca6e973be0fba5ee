"""Models that others have trained: their published figures, their templates, and what they learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness.commands.run import run
from harness.config.compose import compose_run
from harness.config.schema import DataConfig, Template
from harness.data.example import pair
from harness.data.templates import prompt_ids
from harness.records.record import RunStatus
from tests.real.smollm2 import missing

pytestmark = pytest.mark.timeout(
    900
)  # decoding 134 million weights takes its time on a busy machine


def test_the_perplexity_of_stories260k_on_its_own_domain(published: Path, stories: Path) -> None:
    """7.38 was measured on this text cut blindly into windows of 256 tokens behind a BOS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories)
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    text = (published / "eval" / "tinystories_sample_2MiB.txt").read_text()[:60_000]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = torch.tensor([[1, *tokens[start : start + 256]] for start in range(0, 64 * 256, 256)])
    with torch.no_grad():
        logits_BTV = model(rows).logits[:, :-1]
    loss = cross_entropy(logits_BTV.flatten(0, 1), rows[:, 1:].flatten())
    assert loss.exp().item() == pytest.approx(7.38, rel=0.03)


def test_smollm2_reads_prompts_as_its_own_template_writes_them(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    question = "What is the capital of France?"
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )["input_ids"]
    config = DataConfig(template=Template.tokenizer)
    assert prompt_ids(pair(question, "Paris."), config, tokenizer) == expected


def test_smollm2_answers_and_learns_alpaca(published: Path, smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    ids = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    record, _ = run(
        compose_run(
            [
                *(f"model={smollm2}", "quant=nf4_dq", "data=alpaca", "eval=loss", "tracker=none"),
                f"data.path={published / 'instruct' / 'alpaca_200_seed0.jsonl'}",
                *("data.validation_rows=8", "data.test_rows=0", "data.max_length=128"),
                *("optim.steps=6", "optim.batch_size=4", "optim.lr=1e-3"),
                *(f"paths.out={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}"),
            ]
        )
    )
    assert record.status is RunStatus.completed
    assert record.evals["after"]["eval/loss"].value < record.evals["before"]["eval/loss"].value


def test_smollm2_is_a_base_by_its_name(published: Path, tmp_path: Path) -> None:
    problem = missing()
    if problem is not None:
        pytest.skip(problem)
    rows = published / "instruct" / "shawgpt_qlora_comments.jsonl"
    record, _ = run(
        compose_run(
            [
                *("model=smollm2_135m", "quant=nf4_dq", "data=comments", "eval=loss"),
                *(f"data.path={rows}", "data.template=tokenizer", "data.max_length=128"),
                *("optim.steps=4", "optim.batch_size=4", "optim.lr=1e-3", "tracker=none"),
                *(f"paths.out={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}"),
            ]
        )
    )
    assert record.status is RunStatus.completed
    assert record.provenance["base_storage"] == "Q4_1"
    assert any("came rounded to Q4_1" in note for note in record.notes)
    assert record.evals["after"]["eval/loss"].value < record.evals["before"]["eval/loss"].value
