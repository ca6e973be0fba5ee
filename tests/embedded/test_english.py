"""The English tasks: their sizes, answers that can be checked, and splits that share no question."""

import itertools

import pytest

from harness.embedded.english import MOST_COMMENTS, SIGN_OFF, Asked, make_english_task


def rows_of(name: str, **sizes: int) -> tuple[tuple[Asked, ...], ...]:
    wanted = {"train_rows": 50, "validation_rows": 9, "test_rows": 1} | sizes
    return make_english_task(name, **wanted, seed=0)


@pytest.mark.parametrize("name", ["comments", "instructions"])
def test_no_question_is_in_two_splits_and_seeds_draw_others(name):
    splits = rows_of(name)
    assert [len(rows) for rows in splits] == [50, 9, 1]
    questions = [(row.prompt, row.input) for rows in splits for row in rows]
    assert len(set(questions)) == 60
    assert splits == rows_of(name)
    other = make_english_task(name, train_rows=50, validation_rows=9, test_rows=1, seed=1)
    assert set(other[0]) != set(splits[0])


def test_every_reply_is_short_and_signed():
    for rows in rows_of("comments", train_rows=MOST_COMMENTS - 10):
        assert all(row.response.endswith(f" {SIGN_OFF}") for row in rows)
        assert max(len(row.response) for row in rows) < 120
    with pytest.raises(ValueError, match=f"{MOST_COMMENTS} rows in all"):
        rows_of("comments", train_rows=MOST_COMMENTS)


def test_answers_to_instructions_follow_from_their_inputs():
    for row in rows_of("instructions", train_rows=300)[0]:
        given, answer = row.input.split(", "), row.response.split(", ")
        match row.prompt.split()[0]:
            case "Write":
                assert answer == given[::-1]
            case "Put":
                assert answer == sorted(given)
            case "Which":
                assert answer == [min(given)]
            case "Continue":
                terms = [int(term) for term in [*given, *answer]]
                sums = [a + b for a, b in itertools.pairwise(terms)]
                if "sum" in row.prompt:
                    assert terms[2:] == sums[:-1]
                else:
                    assert len({b - a for a, b in itertools.pairwise(terms)}) == 1
            case "Name":
                assert not row.input
            case other:
                pytest.fail(other)
