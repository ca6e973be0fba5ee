"""Hydra's sweep grammar becomes axes, as Hydra itself reads it; what is no axis is refused."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from harness.config.identity import _NOT_RESULT
from harness.config.schema import RunConfig
from harness.errors import RequestError
from harness.question.axes import CaseAxis, ChoiceAxis, Condition, NumberAxis
from harness.question.entries import Entries, read_axes
from harness.question.grammar import axis_from_text
from harness.question.keys import WITHOUT_EFFECT, known_axis_keys


def hydras_values(text: str) -> list[object]:
    """Return what Hydra itself makes of a sweep."""
    override = OverridesParser.create().parse_override(f"x={text}")
    return list(override.sweep_iterator())


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        ("quant", "choice(nf4, int4)", ("nf4", "int4")),
        ("quant", "nf4,int4", ("nf4", "int4")),
        ("quant", "choice('nf4', \"int4\")", ("nf4", "int4")),
        ("quant", "sort(nf4,int4)", ("int4", "nf4")),
        ("lora.rank", "choice(2, 8)", ("2", "8")),
        ("lora.rank", "int(choice('2', 8.0))", ("2", "8")),
        ("optim.lr", "choice(1e-3, 0.01, 1)", ("0.001", "0.01", "1")),
        ("lora.rslora", "choice(true, False)", ("true", "false")),
        ("lora.alpha", "16,null", ("16", "null")),
        ("quant.format", "choice(nf4, none)", ("nf4", "none")),
        (
            "lora.target_modules",
            "choice([q_proj, v_proj], [mlp])",
            ("[q_proj,v_proj]", "[mlp]"),
        ),
        ("model", "choice(embedded, org/Llama-3.2-1B)", ("embedded", "org/Llama-3.2-1B")),
        ("model", "choice('/models/a (b)')", ("'/models/a (b)'",)),
    ],
)
def test_a_choice_keeps_its_values_as_the_grammar_would_take_them(key, text, values):
    axis = axis_from_text(key, text)
    assert axis == ChoiceAxis(key, values)
    assert axis_from_text(key, axis.grammar) == axis


def test_a_glob_chooses_from_the_options_of_a_group():
    axis = axis_from_text("quant", "glob(int4*, exclude=*_dq)")
    assert axis.choices == ("int4", "int4_asym")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("lora.rank", "range(2, 10, 2)"),
        ("lora.rank", "range(2, 9, 3)"),
        ("lora.rank", "range(5)"),
        ("lora.rank", "int(range(1, 9, 2))"),
        ("optim.lr", "range(1, 2, 0.25)"),
        ("lora.dropout", "range(0.0, 0.5, 0.125)"),
    ],
)
def test_a_range_has_the_values_that_hydra_gives_it(key, text):
    axis = axis_from_text(key, text)
    assert isinstance(axis, NumberAxis)
    assert axis.choices is not None
    assert [float(value) for value in axis.choices] == hydras_values(text)
    assert axis.high == float(axis.choices[-1])
    assert axis_from_text(key, axis.grammar) == axis


def test_a_range_has_so_many_values_at_most_and_a_short_one_is_checked_at_every_one():
    long = axis_from_text("lora.rank", "range(0, 10000)")
    assert long.choices is not None
    assert len(long.choices) == 10_000
    assert long.samples == ("0", "9999")
    with pytest.raises(RequestError, match=r"has 10,001 values, and a range at most 10,000"):
        axis_from_text("lora.rank", "range(0, 10001)")
    short = axis_from_text("lora.rank", "range(1, 17)")
    assert short.samples == tuple(map(str, range(1, 17)))
    assert axis_from_text("lora.rank", "range(1, 18)").samples == ("1", "17")
    one = axis_from_text("lora.rank", "range(5, 6)")
    assert (one.samples, one.choices) == (("5",), ("5",))


def test_a_range_of_tenths_has_tenths_in_it_and_goes_up_whichever_way_it_is_written():
    axis = axis_from_text("lora.dropout", "range(0.0, 0.5, 0.1)")
    assert axis.choices == ("0.0", "0.1", "0.2", "0.3", "0.4")
    assert axis_from_text("lora.rank", "range(8, 0, -2)").choices == ("2", "4", "6", "8")


@pytest.mark.parametrize(
    ("key", "text", "axis"),
    [
        ("optim.lr", "interval(1e-4, 1e-2)", NumberAxis("optim.lr", 1e-4, 1e-2)),
        (
            "optim.lr",
            "tag(log, interval(1e-4, 1e-2))",
            NumberAxis("optim.lr", 1e-4, 1e-2, log=True),
        ),
        (
            "lora.rank",
            "int(tag(log, interval(1, 64)))",
            NumberAxis("lora.rank", 1.0, 64.0, log=True, integer=True),
        ),
        (
            "lora.rank",
            "tag(log,int(interval(1,64)))",
            NumberAxis("lora.rank", 1.0, 64.0, log=True, integer=True),
        ),
    ],
)
def test_an_interval_keeps_its_ends_and_its_scale(key, text, axis):
    read = axis_from_text(key, text)
    assert read == axis
    assert read.choices is None
    assert axis_from_text(key, axis.grammar) == axis


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("lora.rank", "choice()", ["lora.rank=choice()", "empty"]),
        ("lora.rank", "choice(2, 8", ["choice(2, 8", "choice(a, b)"]),
        ("lora.rank", "8", ["one value", "base"]),
        ("lora.rank", "choice(2, 8, 2)", ["2 twice"]),
        ("lora.rank", "choice(2, eight)", ["lora.rank=eight", "whole number"]),
        ("lora.rank", "choice(2, true)", ["lora.rank=true", "whole number"]),
        ("lora.rank", "choice(2, 2.5)", ["lora.rank=2.5", "whole number"]),
        ("lora.rank", "choice({a: 1}, {a: 2})", ["cases"]),
        ("lora.rank", "interval(1, 64)", ["whole numbers", "int(interval(1, 64))"]),
        ("lora.rank", "range(1, 2, 0.25)", ["whole numbers"]),
        ("lora.rank", "shuffle(2, 8)", ["shuffle"]),
        ("lora.rank", "shuffle(range(1, 4))", ["shuffle"]),
        ("lora.rank", "tag(log, choice(2, 8))", ["tag(log", "interval"]),
        ("lora.rank", "range(8, 2)", ["empty"]),
        ("lora.rank", "range(2, 8, 0)", ["step"]),
        ("lora.rslora", "choice(true, yes)", ["lora.rslora=yes", "true or false"]),
        ("optim.lr", "interval(1e-2, 1e-4)", ["0.01", "0.0001"]),
        ("optim.lr", "interval(1e-4, 1e-4)", ["larger"]),
        ("optim.lr", "interval(1e-4)", ["optim.lr=interval(1e-4)", "interval(low, high)"]),
        ("optim.lr", "interval(0, inf)", ["0.0 and inf"]),
        ("optim.lr", "tag(log, interval(0, 1))", ["above 0", "0.0"]),
        ("optim.lr", "tag(lgo, interval(1e-3, 1))", ["lgo", "log"]),
        ("optim.max_grad_norm", "choice(0.3, null)", ["0.3, null", "a,null"]),
        ("quant", "choice(nf4, nf5)", ["quant=nf5", "nf4"]),
        ("quant", "interval(1, 2)", ["quant", "group", "choice"]),
        ("quant", "glob(int5*)", ["int5*", "int4_asym"]),
        ("lora.rank", "glob(*)", ["glob", "group"]),
        ("quant.format", "choice(nf4, nf5)", ["quant.format=nf5", "nf4"]),
        ("quant.format", "choice(nf4, null)", ["nf4, null"]),
        ("lora.target_modules", "choice(q_proj)", ["[q_proj]"]),
    ],
)
def test_what_is_no_axis_is_refused_with_what_would_work(key, text, words):
    with pytest.raises(RequestError) as refused:
        axis_from_text(key, text)
    message = str(refused.value)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora.rnk", ["lora.rnk", "lora.rank"]),
        ("lr", ["'lr'", "optim.lr"]),
        ("qunt", ["qunt", "quant"]),
        ("checkpoint", ["checkpoint", "result"]),
        ("resources.device", ["resources.device", "result", "base"]),
        ("tracker", ["tracker", "result"]),
        ("seed", ["search.seeds"]),
    ],
)
def test_a_key_that_no_axis_can_have_is_refused_with_near_names(key, words):
    with pytest.raises(RequestError) as refused:
        read_axes(Entries(axes={key: "choice(1, 2)"}, where="my.yaml: "))
    message = str(refused.value)
    assert message.startswith("my.yaml: space: ")
    assert all(word in message for word in words), message


def test_what_changes_no_result_is_no_axis_and_all_else_is():
    assert set(WITHOUT_EFFECT) == set(_NOT_RESULT)
    keys = {key.split(".")[0] for key in known_axis_keys()}
    sections = {*RunConfig.__dataclass_fields__} - {*_NOT_RESULT, "seed"}
    assert keys == sections | {"experiment"}  # a group without a section of its own


def read(**entries) -> dict:
    """Return axes by key; `__` in a name stands for a dot."""
    axes = {key.replace("__", "."): entry for key, entry in entries.items()}
    return {axis.key: axis for axis in read_axes(Entries(axes=axes))}


@pytest.mark.parametrize(
    "condition",
    [
        {"when": {"quant.format": ["nf4", "fp4"]}},
        {"unless": {"quant.format": ["none", "int8"]}},
    ],
)
def test_a_condition_names_the_values_of_an_earlier_axis(condition):
    axes = read(
        quant__format="choice(none, nf4, fp4, int8)",
        quant__double_quant={"values": "choice(true, false)", **condition},
    )
    expected = Condition("quant.format", frozenset({"nf4", "fp4"}))
    assert axes["quant.double_quant"].condition == expected


@pytest.mark.parametrize("value", [True, "true", ["True"], "'true'"])
def test_a_condition_is_spelled_as_yaml_or_as_the_grammar_has_it(value):
    if value == "'true'":  # a text, not a truth value
        with pytest.raises(RequestError, match="never 'true'"):
            read(
                lora__rslora="true,false",
                lora__rank={"values": "2,8", "when": {"lora.rslora": value}},
            )
        return
    axes = read(
        lora__rslora="true,false", lora__rank={"values": "2,8", "when": {"lora.rslora": value}}
    )
    assert axes["lora.rank"].condition == Condition("lora.rslora", frozenset({"true"}))


def test_cases_are_several_overrides_under_one_label():
    axes = read(targets={"cases": {"qv": ["lora=qv", "lora.rank=43"], 8: ["lora.rank=8"]}})
    assert axes["targets"] == CaseAxis(
        "targets", {"qv": ("lora=qv", "lora.rank=43"), "8": ("lora.rank=8",)}
    )
    some = read(targets={"cases": {"a": [], "b": ["lora=qv"]}, "values": "choice(b)"})
    assert some["targets"].choices == ("b",)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"lora.rank": [2, 8]}, ["lora.rank", "[2,8]", "choice(a, b)"]),
        ({"lora.rank": 8}, ["lora.rank: 8"]),
        ({"lora.rank": {"value": "choice(2, 8)"}}, ["'value'", "values"]),
        ({"lora.rank": {"values": [2, 8]}}, ["lora.rank", "[2,8]"]),
        ({"lora.rank": {"when": {"quant": "nf4"}}}, ["values", "nothing"]),
        ({"lora.rank": {"cases": {"a": ["lora.rank=2"]}}}, ["lora.rank", "another name"]),
        ({"search": {"cases": {"a": ["lora.rank=2"]}}}, ["search", "another name"]),
        ({"a b": {"cases": {"a": ["lora.rank=2"]}}}, ["'a b'", "letters"]),
        ({"sets": {"cases": {}}}, ["cases must be a mapping"]),
        ({"sets": {"cases": {"a": "lora.rank=2"}}}, ["must be a list", "lora.rank=2"]),
        ({"sets": {"cases": {True: ["lora.rank=2"]}}}, ["True", "quotes"]),
        ({"sets": {"cases": {"a,b": ["lora.rank=2"]}}}, ["a,b"]),
        ({"sets": {"cases": {"a": ["lora.rnk=2"]}}}, ["the case a", "lora.rnk", "lora.rank"]),
        ({"sets": {"cases": {"a": ["lora.rank=2,8"]}}}, ["the case a", "several"]),
        ({"sets": {"cases": {"a": ["paths.out=x"]}}}, ["the case a", "paths"]),
        ({"sets": {"cases": {"a": ["lora=qv"], "b": ["lora=qv"]}}}, ["a", "b", "the same"]),
        (
            {"sets": {"cases": {"qv": ["lora=qv"]}, "values": "choice(vq)"}},
            ["sets=vq", "qv"],
        ),
        ({"lora.rank": {"values": "2,8", "when": {"quant": "nf4"}}}, ["'quant'", "no axis"]),
        (
            {"lora.rank": {"values": "2,8", "when": {"quant": "nf4"}}, "quant": "nf4,int4"},
            ["quant", "later"],
        ),
        (
            {"quant": "nf4,int4", "lora.rank": {"values": "2,8", "when": {"quant": "nf5"}}},
            ["never nf5", "nf4"],
        ),
        (
            {
                "quant": "nf4,int4",
                "lora.rank": {"values": "2,8", "unless": {"quant": ["nf4", "int4"]}},
            },
            ["never holds"],
        ),
        (
            {
                "quant": "nf4,int4",
                "lora.rank": {
                    "values": "2,8",
                    "when": {"quant": "nf4"},
                    "unless": {"quant": "nf4"},
                },
            },
            ["not both"],
        ),
        (
            {"optim.lr": "interval(1, 2)", "lora.rank": {"values": "2,8", "when": {"optim.lr": 1}}},
            ["optim.lr", "numbers"],
        ),
        (
            {"quant": "nf4,int4", "lora.rank": {"values": "2,8", "when": "nf4"}},
            ["one earlier axis"],
        ),
    ],
)
def test_what_is_no_entry_of_a_space_is_refused(entries, words):
    with pytest.raises(RequestError) as refused:
        read_axes(Entries(axes=entries, where="my.yaml: "))
    message = str(refused.value)
    assert message.startswith("my.yaml: space: ")
    assert all(word in message for word in words), message
