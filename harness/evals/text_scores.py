"""Scores of one generated answer against its reference, between 0 and 1. Imports nothing heavy."""

import re
import unicodedata
from collections.abc import Sequence

_ALONE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
"""Scripts that are written without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han."""


def exact_match_scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return 1.0 where an answer equals its reference after stripping white space, else 0.0."""
    return [
        float(prediction.strip() == reference.strip())
        for prediction, reference in zip(predictions, references, strict=True)
    ]


def words(text: str) -> list[str]:
    """Return the words that ROUGE counts: runs of letters and digits of any script, in lower case.

    Of a-z and 0-9 they are those of the original ROUGE. Marks belong to the letter that they stand on; of
    scripts without spaces between words each letter is a word.
    """
    found: list[str] = []
    is_open = False
    for character in unicodedata.normalize("NFKC", text).lower():
        kind = unicodedata.category(character)[0]
        if _ALONE.match(character) and kind in "LN":
            found.append(character)
            is_open = False
        elif kind == "M" and found:
            found[-1] += character
        elif kind in "LN":
            if is_open:
                found[-1] += character
            else:
                found.append(character)
            is_open = True
        else:
            is_open = False
    return found


class UnicodeWords:
    """`words` as `rouge-score` takes a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of `text`."""
        return words(text)


def rouge_l_scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the F1 of the longest common subsequence of `words` (Lin 2004), by `rouge-score`, unstemmed.

    An empty answer scores 0; of a reference without a word the score is not defined.

    Raises:
        ValueError: a reference has no word.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if not all(words(reference) for reference in references):
        raise ValueError("ROUGE of a reference without a word is not defined; leave it out")
    scorer = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=UnicodeWords())  # pyright: ignore[reportArgumentType]
    return [
        float(scorer.score(reference, prediction)["rougeL"].fmeasure)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
