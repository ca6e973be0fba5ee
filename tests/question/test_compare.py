"""What a question compares: read, refused, spelled out in words, and turned into contrasts."""

import pytest
import yaml

from harness.commands.sweep import plan_text
from harness.config.compose import compose_run
from harness.question.check_space import check_space
from harness.question.compare import (
    Expected,
    combinations_of,
    contrasts_of,
    described,
    matches,
    quota_combinations,
)
from harness.question.load import question_of, question_text
from harness.sweeping.requests import base_of
from tests.question.asking import ask, refusal

SPACE = {
    "quant": "choice(none, nf4, int4)",
    "quant.block_size": {"values": "choice(64, 128)", "unless": {"quant": "none"}},
    "optim.lr": "choice(1e-3, 1e-2)",
}
RANKS = {"lora.rank": "choice(2, 8, 32)", "optim.lr": "choice(1e-3, 1e-2)"}
CONFIRM = {"seeds": [10, 11, 12]}


def pairs(question) -> list[tuple[str, str, dict[str, str]]]:
    return [
        (each.level, each.reference, each.within)
        for compare in question.compare
        for each in contrasts_of(compare, question.space)
    ]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ("steps", [("8", "2"), ("32", "8")]),
        ("each", [("8", "2"), ("32", "2"), ("32", "8")]),
        (8, [("2", "8"), ("32", "8")]),
    ],
)
def test_levels_are_compared_in_steps_each_with_each_or_with_one(tmp_path, between, expected):
    question = ask(tmp_path, space=RANKS, compare={"lora.rank": between}, confirm=CONFIRM)
    assert [(level, reference) for level, reference, _ in pairs(question)] == expected


def test_a_level_without_the_inner_axis_is_in_no_contrast(tmp_path):
    compare = {"quant": "nf4", "per": "quant.block_size"}
    question = ask(tmp_path, space=SPACE, compare=compare, confirm=CONFIRM)
    assert pairs(question) == [
        ("int4", "nf4", {"quant.block_size": size}) for size in ("64", "128")
    ]
    (asked,) = question.compare
    assert len(combinations_of(asked, question.space)) == 4
    assert len(quota_combinations([asked], question.space)) == 5, "none is searched all the same"


@pytest.mark.parametrize(
    ("between", "levels"),
    [(2, ["8", "32"]), (8, ["2", "32"]), (32, ["2", "8"]), ("steps", ["8", "32"])],
)
def test_one_word_is_expected_of_every_level_that_is_compared(tmp_path, between, levels):
    compare = {"lora.rank": between, "expected": "worse"}
    question = ask(tmp_path, space=RANKS, compare=compare, confirm=CONFIRM)
    assert question.compare[0].expected == tuple((level, Expected.worse) for level in levels)
    for level in levels:
        named = {"lora.rank": between, "expected": {level: "better"}}
        asked = ask(tmp_path, space=RANKS, compare=named, confirm=CONFIRM)
        assert asked.compare[0].expected == ((level, Expected.better),)


def test_what_is_expected_is_kept_by_level(tmp_path):
    compare = {"lora.rank": "steps", "expected": {8: "better", 32: "equivalent"}}
    question = ask(tmp_path, space=RANKS, compare=compare, confirm=CONFIRM)
    (asked,) = question.compare
    found = [each.expected for each in contrasts_of(asked, question.space)]
    assert found == [Expected.better, Expected.equivalent]


def test_a_question_with_contrasts_written_out_asks_the_same(tmp_path):
    question = ask(
        tmp_path,
        space=SPACE,
        search={"method": "grid", "seeds": [0, 1]},
        compare=[{"quant": "nf4", "per": ["quant.block_size"], "expected": "equivalent"}],
        margin=0.02,
        confirm={"seeds": "auto", "at_most": 7},
    )
    assert question.confirm is not None
    assert question.confirm.seeds == tuple(range(10, 17))
    assert question_of(yaml.safe_load(question_text(question)), "asked", []) == question


def test_a_dry_run_says_in_words_what_will_be_compared(tmp_path):
    question = ask(
        tmp_path,
        "quant=nf4",
        space=RANKS | {"data.template": "choice(alpaca, plain)"},
        base=[
            "data=pairs",
            f"data.path={tmp_path / 'rows.jsonl'}",
            "optim.steps=4",
            "tracker=none",
        ],
        compare={"lora.rank": "steps", "per": "data.template", "expected": "better"},
        margin=0.05,
        confirm=CONFIRM,
    )
    rows = (f'{{"prompt": "{number}", "response": "b"}}\n' for number in range(900))
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    text = plan_text(question, check_space(question), compose_run(base_of(question)))
    for words in (
        "compare: lora.rank 8 with 2, 32 with 8, each within 2 (data.template=alpaca; data.template=plain)",
        "whether these differ between the levels of data.template",
        "expected: 8 better, 32 better",
        "each level at its best optim.lr of the search",
        "margin: differences of eval/loss below 0.05 nats/token count as none",
        "the best cell of each of 6 compared combinations, and the best 1 of all",
        "with 3 seeds a paired t-test finds",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"compare": {"lora.rnk": "each"}}, ["'lora.rnk' is no axis", "lora.rank"]),
        ({"compare": {"lora.rank": "stps"}}, ["stps is none of", "near names: steps"]),
        ({"compare": {"lora.rank": 7}}, ["7 is none of each, steps, 2, 8, 32"]),
        ({"compare": {"lora.rank": "each", "per": "lora.rank"}}, ["names an axis twice"]),
        (
            {"compare": {"lora.rank": "each", "per": ["optim.lr", "optim.lr"]}},
            ["names an axis twice"],
        ),
        ({"compare": {"lora.rank": "each", "optim.lr": "each"}}, ["names one axis"]),
        ({"compare": {}}, ["names one axis, got none"]),
        ({"compare": "lora.rank"}, ["must be a mapping such as"]),
        (
            {"compare": {"lora.rank": "steps", "expected": {2: "better"}}},
            ["2 is no level of lora.rank"],
        ),
        ({"compare": {"lora.rank": "steps", "expected": "beter"}}, ["near names: better"]),
        ({"compare": {"lora.rank": "each", "expected": "better"}}, ["needs a reference"]),
        ({"margin": -1}, ["margin=-1", "positive number"]),
        ({"margin": "wide"}, ["margin=wide"]),
        ({"confirm": {"seeds": "auto"}}, ["confirm.seeds=auto needs margin"]),
        (
            {"confirm": {"seeds": "auto"}, "margin": 0.1},
            ["confirm.seeds=auto needs two or more search.seeds"],
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_would_work(tmp_path, parts, words):
    text = refusal(tmp_path, **({"space": RANKS, "confirm": CONFIRM} | parts))
    for word in words:
        assert word in text


def test_what_the_command_line_takes_away_is_not_compared(tmp_path):
    compare = {"lora.rank": "steps", "per": "optim.lr", "expected": {8: "better", 32: "worse"}}
    parts = {"space": RANKS, "compare": compare, "confirm": CONFIRM}
    assert ask(tmp_path, "lora.rank=8", **parts).compare == ()
    (fewer,) = ask(tmp_path, "lora.rank=choice(2,8)", **parts).compare
    assert fewer.expected == (("8", Expected.better),)
    (alone,) = ask(tmp_path, "optim.lr=1e-3", **parts).compare
    assert alone.per == ()
    beside = {"space": RANKS, "compare": {"lora.rank": 2}, "confirm": CONFIRM}
    assert "2 is none of each, steps, 8, 32" in refusal(
        tmp_path, "lora.rank=choice(8,32)", **beside
    )
    assert ask(tmp_path, "confirm=null", **parts).confirm is None


def test_an_interval_has_no_levels(tmp_path):
    space = {"optim.lr": "tag(log, interval(1e-3, 1e-2))"}
    search = {"method": "random", "trials": 3}
    parts = {"space": space, "search": search, "confirm": CONFIRM, "compare": {"optim.lr": "each"}}
    assert "has no levels; write choice(a, b)" in refusal(tmp_path, **parts)


def test_the_command_line_gives_a_comparison(tmp_path):
    question = ask(
        tmp_path, "compare={lora.rank:steps}", "margin=0.5", space=RANKS, confirm=CONFIRM
    )
    assert [each.between for each in question.compare] == ["steps"]
    assert question.margin == 0.5


def test_axes_that_vary_where_the_compared_one_is_are_tuned(tmp_path):
    space = {
        **SPACE,
        "lora.alpha": {"values": "choice(8, 16)", "when": {"quant": "none"}},
        "lora.dropout": {"values": "choice(0.0, 0.1)", "when": {"quant": ["none", "nf4"]}},
    }
    question = ask(tmp_path, space=space, compare={"quant.block_size": 64}, confirm=CONFIRM)
    (asked,) = question.compare
    assert described(asked, question.space) == [
        "compare: quant.block_size 128 with 64",
        "  each level at its best optim.lr, lora.dropout of the search",
    ]
    alone = {"lora.rank": "choice(2, 8, 32)"}
    question = ask(tmp_path, space=alone, compare={"lora.rank": "each"}, confirm=CONFIRM)
    assert described(question.compare[0], question.space) == [
        "compare: lora.rank 8 with 2, 32 with 2, 32 with 8"
    ]


def test_what_is_compared_within_one_place_differs_between_none(tmp_path):
    question = ask(
        tmp_path,
        space={"lora.rank": "choice(2, 8)", "quant": "choice(nf4)"},
        compare={"lora.rank": 2, "per": "quant"},
        confirm=CONFIRM,
    )
    assert described(question.compare[0], question.space) == [
        "compare: lora.rank 8 with 2, each within 1 (quant=nf4): 1 comparisons"
    ]


@pytest.mark.parametrize(
    ("point", "combination", "expected"),
    [
        ({"a": "1", "b": "2"}, {"a": "1", "b": "2"}, True),
        ({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "2"}, True),
        ({"a": "1", "b": "2"}, {"a": "1"}, False),
        ({"a": "1"}, {"a": "1", "b": "2"}, False),
        ({"a": "1"}, {"a": "1"}, True),
        ({"a": "2", "b": "2"}, {"a": "1", "b": "2"}, False),
    ],
)
def test_a_point_has_a_combination_whose_levels_are_exactly_its_own(point, combination, expected):
    assert matches(point, combination, ["a", "b"]) is expected
