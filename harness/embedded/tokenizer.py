"""The byte-level BPE tokenizer of the embedded language, trained on its corpus.

Byte-level, so no text is unknown and decoding gives back every byte. Digits stand alone, so
arithmetic sees places. A newline never merges with its neighbours, so the tokens of
`prompt + "\\n"` are the first tokens of `prompt + "\\n" + response`.
"""

from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harness.embedded.corpus import BOS, EOS, PAD, Part, documents

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2  # Special tokens come first, in the order given to the trainer.
VOCABULARY_SIZE = 1024
TRAINING_DOCUMENTS = 40_000
CONTEXT_TOKENS = 256


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the first documents of the pretraining corpus; puts BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = islice(documents(Part.PRETRAIN, seed=seed), TRAINING_DOCUMENTS)
    tokenizer.train_from_iterator((document.text for document in corpus), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a model's folder."""
    return PreTrainedTokenizerFast.from_pretrained(folder)
