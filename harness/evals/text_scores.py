"""Scores of one generated answer against its reference, between 0 and 1. Imports nothing heavy."""

from collections.abc import Sequence


def exact_match_scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return 1.0 where an answer equals its reference after stripping white space, else 0.0."""
    return [
        float(prediction.strip() == reference.strip())
        for prediction, reference in zip(predictions, references, strict=True)
    ]


def rouge_l_scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the F1 of the longest common subsequence of words (Lin 2004), by `rouge-score`, unstemmed.

    Words are runs of a-z and 0-9 after lower-casing, as in the original ROUGE: text in other scripts has
    none and scores 0, and so does an empty answer.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return [
        float(scorer.score(reference, prediction)["rougeL"].fmeasure)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
