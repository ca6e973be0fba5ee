"""Real data and tokenizers for the tests of the data pipeline."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first test imports a library that reads it

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML with the assistant's tokens marked, so that transformers itself says which carry loss."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real data beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data beside the project ({SHARED.name}/)")
    return SHARED.resolve()


@pytest.fixture(scope="session")
def stories_tokenizer(shared):
    """stories260K's: SentencePiece-like, puts a space in front of whatever it encodes."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "stories260K")


@pytest.fixture(scope="session")
def byte_tokenizer():
    """GPT-2-like byte-level BPE with chatml's tokens, an EOS, no BOS, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "What is the colour of the sky at noon? The sky is blue. assistant user system "
    tokenizer.train_from_iterator([text] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture
def write_jsonl(tmp_path) -> Callable[..., str]:
    """Return a function that writes rows as a .jsonl file and returns its path."""

    def write(rows: list[object], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
