"""The points of a space, what they ask for, and how a space is checked before anything is trained."""

import itertools
import random

import pytest

from harness.config.compose import compose_run
from harness.errors import RequestError
from harness.question.axes import ChoiceAxis, Condition, NumberAxis
from harness.question.check_space import check_space, sample_points
from harness.question.points import Space
from tests.question.asking import QUICK, ask, space_of


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_3_by_2_by_conditional_2_space_has_each_point_once_in_a_stable_order(tmp_path):
    space = space_of(
        tmp_path,
        lora__rank="choice(2, 4, 8)",
        quant__format="choice(none, nf4)",
        quant__double_quant={"values": "choice(false, true)", "when": {"quant.format": "nf4"}},
    )
    points = list(space.points())
    assert points[:3] == [
        {"lora.rank": "2", "quant.format": "none"},
        {"lora.rank": "2", "quant.format": "nf4", "quant.double_quant": "false"},
        {"lora.rank": "2", "quant.format": "nf4", "quant.double_quant": "true"},
    ]
    assert {tuple(point.values()) for point in points} == {
        (rank, *quant)
        for rank in ("2", "4", "8")
        for quant in (("none",), ("nf4", "false"), ("nf4", "true"))
    }
    assert len(points) == space.num_points == 9
    assert points == list(space.points())


def test_a_space_without_axes_has_one_point():
    assert list(Space(()).points()) == [{}]
    assert Space(()).num_points == 1


@pytest.mark.parametrize("seed", range(20))
def test_points_are_counted_without_being_made(seed):
    draw = random.Random(seed)
    axes: list[ChoiceAxis] = []
    for index in range(6):
        condition = None
        if axes and draw.random() < 0.6:
            other = draw.choice(axes)
            some = draw.sample(other.values, draw.randint(1, len(other.values)))
            condition = Condition(other.key, frozenset(some))
        values = tuple(str(value) for value in range(draw.randint(1, 4)))
        axes.append(ChoiceAxis(f"axis{index}", values, condition))
    space = Space(tuple(axes))
    points = [tuple(sorted(point.items())) for point in space.points()]
    assert len(points) == len(set(points)) == space.num_points


def test_a_large_space_is_counted_at_once_and_an_interval_has_no_count():
    many = tuple(ChoiceAxis(f"axis{n}", tuple(map(str, range(10)))) for n in range(30))
    assert Space(many).num_points == 10**30
    with_interval = Space((*many, NumberAxis("optim.lr", 1e-4, 1e-2)))
    assert with_interval.num_points is None
    with pytest.raises(RequestError, match=r"optim\.lr: interval\(0\.0001, 0\.01\) has no grid"):
        next(with_interval.points())


def test_groups_come_before_fields_and_the_point_is_what_the_configuration_says(tmp_path):
    space = space_of(
        tmp_path,
        lora__rank="choice(2, 8)",
        targets={"cases": {"qv": ["lora.alpha=4", "lora=qv"], "all": ["lora=all_linear"]}},
        quant="choice(nf4, int4)",
        lora__target_modules={"values": "[v_proj],[q_proj]", "when": {"targets": "all"}},
    )
    point = {"lora.rank": "8", "targets": "qv", "quant": "int4"}
    assert space.overrides(point) == ["lora=qv", "quant=int4", "lora.rank=8", "lora.alpha=4"]
    config = compose_run(space.overrides(point))
    assert (config.lora.rank, config.lora.alpha, config.lora.alpha_over_rank) == (8, 4.0, None)
    assert config.lora.target_modules == ["q_proj", "v_proj"]
    config = compose_run(
        space.overrides({"targets": "all", "quant": "nf4", "lora.target_modules": "[v_proj]"})
    )
    assert config.lora.target_modules == ["v_proj"]


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"lora.rnk": "2"}, ["lora.rnk", "lora.rank"]),
        ({"quant.format": "nf5"}, ["quant.format=nf5", "nf4"]),
        ({"lora.rank": "3"}, ["lora.rank=3", "range(2, 10, 2)"]),
        ({"optim.lr": "0.1"}, ["optim.lr=0.1", "interval"]),
        ({"optim.lr": "high"}, ["optim.lr=high", "number"]),
        ({"optim.batch_size": "2.0"}, ["optim.batch_size=2.0"]),
        ({"quant.format": "none", "quant.double_quant": "true"}, ["quant.format=none", "nf4"]),
    ],
)
def test_what_is_no_point_is_refused_with_the_axis_and_near_names(tmp_path, point, words):
    space = space_of(
        tmp_path,
        lora__rank="range(2, 10, 2)",
        optim__lr="tag(log, interval(1e-4, 1e-2))",
        optim__batch_size="int(interval(1, 4))",
        quant__format="choice(none, nf4)",
        quant__double_quant={"values": "choice(false, true)", "when": {"quant.format": "nf4"}},
    )
    space.check_point({"lora.rank": "8", "optim.lr": "0.001", "quant.format": "none"})
    space.check_point({"optim.lr": "0.0001", "optim.batch_size": "4", "quant.double_quant": "true"})
    with pytest.raises(RequestError) as refused:
        space.check_point(point)
    message = str(refused.value)
    assert all(word in message for word in words), message


# Sampling ----------------------------------------------------------------------------------------


def test_a_search_is_checked_at_every_pair_of_values_that_can_meet(tmp_path):
    question = ask(
        tmp_path,
        search={"method": "random", "trials": 5},
        space={
            "quant.format": "choice(none, nf4, int4)",
            "quant.double_quant": {
                "values": "choice(false, true)",
                "unless": {"quant.format": "none"},
            },
            "lora.rank": "choice(2, 8)",
            "optim.lr": "interval(1e-3, 1e-2)",
            "lora": "choice(qv, mlp)",
        },
    )
    space = question.space
    points = sample_points(question)
    assert len({tuple(point.items()) for point in points}) == len(points)
    for point in points:
        assert ("quant.double_quant" in point) == (point["quant.format"] != "none")
        space.check_point(point)
    values = {axis.key: axis.samples for axis in space.axes}
    assert values["optim.lr"] == ("0.001", "0.01")
    for one, other in itertools.combinations(values, 2):
        met = {(point[one], point[other]) for point in points if one in point and other in point}
        excluded = {
            pair
            for pair in itertools.product(values[one], values[other])
            if (one, other) == ("quant.format", "quant.double_quant") and pair[0] == "none"
        }
        assert met == set(itertools.product(values[one], values[other])) - excluded
    assert len(points) < 3 * 2 * 2 * 2 * 2 + 8


def test_a_grid_is_checked_at_every_point_and_a_search_at_its_starts(tmp_path):
    axes = {"lora.rank": "choice(2, 4, 8)", "optim.lr": "choice(1e-3, 2e-3)", "lora": "qv,mlp"}
    grid = ask(tmp_path, space=axes)
    assert sample_points(grid) == list(grid.space.points())
    start = {"lora.rank": 4, "optim.lr": 2e-3}
    search = ask(tmp_path, space=axes, search={"method": "tpe", "trials": 9, "starts": [start]})
    assert sample_points(search)[0] == {"lora.rank": "4", "optim.lr": "0.002", "lora": "qv"}


# Checking ----------------------------------------------------------------------------------------


def test_a_space_that_is_right_comes_back_with_its_configurations(tmp_path):
    question = ask(
        tmp_path, space={"quant": "nf4,int4", "lora.rank": "2,8"}, search={"seeds": [3, 4]}
    )
    checked = check_space(question)
    assert [point for point, _ in checked] == list(question.space.points())
    for point, config in checked:
        assert config == compose_run([*QUICK, *question.space.overrides(point), "seed=3"])


def test_a_refusal_names_the_point_and_the_axes_that_make_the_difference(tmp_path):
    question = ask(
        tmp_path,
        space={"quant": "nf4,none", "quant.block_size": "64,128", "lora.rank": "2,8"},
    )
    with pytest.raises(RequestError) as refused:
        check_space(question)
    head, line = str(refused.value).splitlines()
    assert head.startswith("2 of the 8 points")
    assert "quant.block_size=128 would be ignored by quant.format=none" in line
    assert "at quant=none quant.block_size=128 lora.rank=2 and 1 more" in line
    assert line.endswith(
        "the axes quant and quant.block_size: accepted with quant=nf4 or quant.block_size=64"
    )


def test_a_conditional_axis_is_not_blamed_for_what_its_condition_does(tmp_path):
    question = ask(
        tmp_path,
        base=[*QUICK, "quant.block_size=128"],
        space={
            "quant.format": "choice(none, nf4)",
            "quant.double_quant": {
                "values": "choice(false, true)",
                "when": {"quant.format": "nf4"},
            },
        },
    )
    with pytest.raises(
        RequestError, match=r"the axis quant\.format: accepted with quant\.format=nf4$"
    ):
        check_space(question)


def test_many_refusals_are_shortened_and_all_are_counted(tmp_path):
    question = ask(tmp_path, space={"lora.dropout": "range(1.0, 3.0, 0.125)"})
    with pytest.raises(RequestError) as refused:
        check_space(question)
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("16 of the 16 points")
    assert len(lines) == 12
    assert lines[-1] == "… and 6 more reasons"


@pytest.mark.parametrize(
    ("base", "parts", "words"),
    [
        ([], {"space": {"lora.rank": "0,2"}}, ["lora.rank=0", "at least 1", "lora.rank=2"]),
        ([], {"space": {"optim.micro_batch_size": "4,5"}}, ["micro_batch_size=5", "16"]),
        (["eval.generate=false"], {"objective": "eval/exact_match"}, ["eval.generate=false"]),
        ([], {"objective": "eval/choice_accuracy"}, ["eval.choice_path"]),
        (
            ["data.test_rows=0"],
            {"confirm": {"seeds": [9]}},
            ["confirm.split=test", "data.test_rows=0"],
        ),
        (
            ["data.validation_rows=0"],
            {"confirm": {"seeds": [9], "split": "validation"}},
            ["confirm.split=validation", "data.validation_rows=0"],
        ),
        ([], {"objective": {"eval/mine/acc": "maximize"}}, ["eval/mine/acc", "eval.tasks"]),
        ([], {"objective": "eval/forgetting_bits_per_byte"}, ["eval.base_domain=FILE"]),
        (["eval.generate=false"], {"objective": "eval/rouge_l"}, ["eval/rouge_l", "generate"]),
        (["data=pairs"], {}, ["data.path"]),
    ],
)
def test_what_a_plain_run_refuses_or_would_not_measure_is_refused(tmp_path, base, parts, words):
    question = ask(tmp_path, base=[*QUICK, *base], **parts)
    with pytest.raises(RequestError) as refused:
        check_space(question)
    message = str(refused.value)
    assert all(word in message for word in words), message


def test_texts_have_no_prompts_to_answer(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"Text {n}." for n in range(99)))
    base = ["data=text", "optim.steps=4", "tracker=none", f"data.path={tmp_path / 'a.txt'}"]
    question = ask(tmp_path, base=base, objective="eval/exact_match")
    with pytest.raises(RequestError, match=r"not measured: data\.form=text has no prompts"):
        check_space(question)


def test_what_is_asked_for_and_measured_is_accepted(tmp_path):
    parts = {"objective": ["eval/exact_match", "eval/loss"], "confirm": {"seeds": [9]}}
    assert len(check_space(ask(tmp_path, **parts))) == 2
    parts = {
        "objective": "eval/forgetting_bits_per_byte",
        "base": [*QUICK, "eval.base_domain=embedded"],
    }
    assert len(check_space(ask(tmp_path, **parts))) == 2
