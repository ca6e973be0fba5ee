"""ROUGE of text in any script, and where it has no value.

Words that the usual tokeniser does not see score 0, also where the answer is the reference:
huggingface/evaluate#256 and #108, huggingface/datasets#851, google/adk-python#3111,
bigscience-workshop/lm-evaluation-harness#157.
"""

import pytest

from harness.evals.text_scores import exact_match_scores, rouge_l_scores, words

SAME = {
    "Russian": "\u0442\u0435\u0441\u0442 \u043f\u0440\u0438\u0432\u0435\u0442",
    "Nepali": "\u092a\u0942\u0930\u094d\u0935 \u092a\u094d\u0930\u0927\u093e\u0928",
    "Thai": "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "Chinese": "\u4eca\u5929\u5929\u6c14\u597d",
    "Japanese": "\u6771\u4eac\u306f\u96e8\u3067\u3059",
    "Korean": "\uc548\ub155 \ud558\uc138\uc694",
    "Arabic": "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643",
    "Hebrew": "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd",
    "Spanish": "Crist\u00f3bal est\u00e1 ayudando",
    "digits": "\u0664\u0662 42",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_an_answer_that_is_the_reference_scores_one_in_any_script(text: str):
    assert rouge_l_scores([text], [text]) == [1.0]
    assert rouge_l_scores(["something else"], [text]) == [0.0]


def test_scores_by_hand():
    # 3 of 5 and of 4 letters in common and in order: F1 = 2 . 3/5 . 3/4 / (3/5 + 3/4)
    (score,) = rouge_l_scores(["\u4eca\u5929\u5f88\u597d"], ["\u4eca\u5929\u5929\u6c14\u597d"])
    assert score == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert words("Crist\u00f3bal, est\u00e1!") == ["crist\u00f3bal", "est\u00e1"]
    assert words("Tom\u4eca\u5929ab c\u0301d") == ["tom", "\u4eca", "\u5929", "ab", "\u0107d"]
    assert words("\u0e01\u0e34\u0e19") == ["\u0e01\u0e34", "\u0e19"]  # a mark is its letter's
    assert words("\u0301a") == ["a"]  # a mark on nothing is none
    assert words("e\u0301t\u00e9 \u00c9T\u00c9") == ["\u00e9t\u00e9"] * 2  # however it is composed


def test_answers_match_that_are_equal_but_for_white_space_around_them():
    answers = [" a b\n", "a  b", "a", "b", "A b", ""]
    assert exact_match_scores(answers, ["a b"] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert exact_match_scores(["b", "a"], ["a", "b"]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("one", "other"),
    [("the cat sat", "the cat sat on the mat"), ("A b, c-d.", "b d"), ("x1 y2", "x1 Y2 z3")],
)
def test_of_plain_english_it_is_rouge_scores_own(one: str, other: str):
    from rouge_score.rouge_scorer import RougeScorer

    own = RougeScorer(["rougeL"], use_stemmer=False).score(other, one)["rougeL"].fmeasure
    assert rouge_l_scores([one], [other]) == [own]


@pytest.mark.parametrize("reference", ["", " ", "...", "\U0001f600", "\u200b"])
def test_a_reference_without_a_word_has_no_score(reference: str):
    with pytest.raises(ValueError, match="not defined"):
        rouge_l_scores(["x"], [reference])
    assert exact_match_scores([reference], [reference]) == [1.0]
