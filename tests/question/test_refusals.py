"""A question that cannot be asked is refused before anything is composed, with what would work."""

import pytest

from harness.question.check_space import check_space
from tests.question.asking import ask, refusal


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


TPE = {"method": "tpe", "trials": 5}


def test_the_most_and_the_least_that_may_be_asked_for_can_be(tmp_path):
    for trials in (1, 1_000_000):
        assert ask(tmp_path, search=TPE | {"trials": trials}).search.trials == trials


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"serach": {}}, ["'serach'", "search"]),
        ({"question": ""}, ["question", "in words"]),
        ({"question": None}, ["question", "nothing"]),
        ({"expect": False}, ["expect", "False"]),
        ({"name": "a/b"}, ["name='a/b'", "letters"]),
        ({"name": ".."}, ["name='..'"]),
        ({"base": {"data": "rule"}}, ["base must be a list"]),
        ({"base": ["data=rule", "lora.rank=2,4"]}, ["lora.rank=2,4", "space"]),
        ({"base": ["data=rule", "seed=3"]}, ["seed", "search.seeds"]),
        ({"space": ["lora.rank"]}, ["space must be a mapping"]),
        ({"space": {"lora.rnk": "choice(2, 8)"}}, ["lora.rnk", "lora.rank"]),
        ({"space": {"lora.rank": "choice()"}}, ["lora.rank=choice()", "empty"]),
        ({"search": [1]}, ["search must be a mapping"]),
        ({"search": {"methd": "tpe"}}, ["'methd'", "method"]),
        ({"search": {"method": "tpr", "trials": 5}}, ["search.method=tpr", "tpe"]),
        ({"search": {"method": "tpe"}}, ["search.method=tpe", "search.trials"]),
        ({"search": {"trials": 0}}, ["search.trials=0", "at least 1"]),
        ({"search": {"trials": 2.5}}, ["search.trials=2.5", "whole"]),
        ({"search": TPE | {"trials": 1_000_001}}, ["search.trials=1000001", "at most 1,000,000"]),
        ({"search": {"trials": True}}, ["search.trials=True", "whole"]),
        ({"search": {"seeds": []}}, ["search.seeds=[]", "[0, 1]"]),
        ({"search": {"seeds": [1, 1]}}, ["search.seeds=[1, 1]", "twice"]),
        ({"search": {"seeds": [-1]}}, ["search.seeds=[-1]", "negative"]),
        ({"search": {"pruner": "ahsa"}}, ["search.pruner=ahsa", "asha"]),
        ({"search": {"reduction_factor": 4}}, ["reduction_factor=4", "ignored", "pruner=none"]),
        ({"search": {"in_flight": 4}}, ["in_flight=4", "ignored", "method=grid"]),
        ({"search": TPE | {"in_flight": 0}}, ["search.in_flight=0", "at least 1"]),
        ({"search": {"starts": [{"lora.rank": 2}]}}, ["search.starts", "grid"]),
        (
            {"search": TPE | {"starts": [{"lora.rnk": 2}]}},
            ["search.starts", "lora.rnk", "lora.rank"],
        ),
        ({"search": TPE | {"starts": [{"lora.rank": 3}]}}, ["search.starts", "lora.rank=3"]),
        ({"search": TPE | {"starts": [{"lora.rank": 2}] * 2}}, ["search.starts", "twice"]),
        ({"search": TPE, "space": {}}, ["no axis"]),
        (
            {"space": {"optim.lr": "interval(1e-3, 1e-2)"}},
            ["optim.lr", "grid", "search.method=random"],
        ),
        ({"objective": {"eval/los": "minimize"}}, ["eval/los", "eval/loss"]),
        ({"objective": {"eval/loss": "minimise"}}, ["minimise", "minimize"]),
        ({"objective": {"eval/loss": "maximize"}}, ["maximize", "worst", "minimize"]),
        ({"objective": "adapter/trainable_params"}, ["adapter/trainable_params", "neither"]),
        ({"objective": {"train/grad_norm": "minimize"}}, ["train/grad_norm", "single steps"]),
        ({"objective": 3}, ["objective", "3"]),
        ({"objective": ["eval/loss", "eval/loss"]}, ["objective", "twice"]),
        ({"constraints": {"eval/los": {"at_most": 1}}}, ["eval/los", "eval/loss"]),
        ({"constraints": {"eval/loss": {"most": 1}}}, ["'most'", "at_most"]),
        ({"constraints": {"eval/loss": {}}}, ["at_most or at_least"]),
        ({"constraints": {"eval/loss": {"at_most": "8GiB"}}}, ["at_most=8GiB", "number"]),
        ({"constraints": {"memory/peak_bytes": {"at_most": "8Gb"}}}, ["at_most=8Gb", "GiB"]),
        (
            {"constraints": {"eval/loss": {"at_most": 1, "at_least": 2}}},
            ["at most 1", "at least 2"],
        ),
        ({"constraints": ["memory/peak_bytes"]}, ["constraints must be a mapping"]),
        ({"confirm": {"top": 2}}, ["confirm.seeds"]),
        ({"confirm": {"seeds": [0, 5]}}, ["confirm.seeds=[0, 5]", "has 0", "[10, 11]"]),
        ({"confirm": {"seeds": [5], "top": 0}}, ["confirm.top=0"]),
        ({"confirm": {"seeds": [5], "split": "tests"}}, ["confirm.split=tests", "test"]),
        ({"resources": {"devices": "gpu"}}, ["resources.devices=gpu", "cpu:N"]),
        ({"resources": {"devices": "cpu:0"}}, ["resources.devices=cpu:0"]),
        ({"resources": {"devices": [0, "a"]}}, ["resources.devices=[0, 'a']"]),
        ({"resources": {"device": "cpu"}}, ["'device'", "devices"]),
        ({"resources": {"cohort": 0}}, ["resources.cohort=0"]),
        ({"resources": {"hang_seconds": -1}}, ["hang_seconds=-1", "positive number of seconds"]),
        ({"resources": {"hang_seconds": "soon"}}, ["hang_seconds=soon", "number of seconds"]),
        ({"search": TPE | {"sampler_seed": 1.5}}, ["search.sampler_seed=1.5", "whole number"]),
        (
            {"search": {"pruner": "asha", "reduction_factor": 1}},
            ["reduction_factor=1", "at least 2"],
        ),
        (
            {"study": {"storage": "postgresql://h/d", "heartbeat_seconds": 0.5}},
            ["heartbeat_seconds=0.5", "seconds, at least 1"],
        ),
        ({"study": {"storage": "study.db"}}, ["study.storage=study.db", "sqlite:///"]),
        (
            {"objective": ["eval/loss", "memory/peak_bytes"], "search": TPE | {"pruner": "asha"}},
            ["search.pruner=asha", "one objective"],
        ),
        (
            {"objective": "eval/exact_match", "search": {"pruner": "asha"}},
            ["search.pruner=asha", "eval/exact_match", "eval/loss"],
        ),
        (
            {"search": {"method": "cmaes", "trials": 5}},
            ["search.method=cmaes", "numbers", "search.method=tpe"],
        ),
        (
            {
                "search": {"method": "cmaes", "trials": 5},
                "space": {"optim.lr": "interval(1e-3, 1e-2)"},
                "objective": ["eval/loss", "memory/peak_bytes"],
            },
            ["search.method=cmaes", "one objective"],
        ),
    ],
)
def test_a_file_that_asks_wrongly_is_refused_by_file_key_and_value(tmp_path, parts, words):
    message = refusal(tmp_path, **parts)
    assert message.startswith(f"{tmp_path / 'asked.yaml'}: ")
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("base", "space", "words"),
    [
        (["lora.rank=4"], {"lora.rank": "2,8"}, ["base", "lora.rank"]),
        (["quant=nf4"], {"quant": "nf4,int4"}, ["base", "quant"]),
        (["lora.alpha=4"], {"lora.alpha_over_rank": "1,2"}, ["base", "lora.alpha_over_rank"]),
        (
            [],
            {"lora.alpha": "4,8", "lora.alpha_over_rank": "1,2"},
            ["lora.alpha", "of which a run"],
        ),
        (
            [],
            {"sets": {"cases": {"a": ["lora.rank=2"], "b": ["lora=qv"]}}, "lora.rank": "2,8"},
            ["sets and lora.rank", "lora.rank"],
        ),
        (["lora=mlp"], {"sets": {"cases": {"a": ["lora=qv"], "b": []}}}, ["base", "sets", "lora"]),
        *(
            (
                [],
                {
                    "quant": "nf4,int4",
                    "lora": "qv,mlp",
                    "lora.alpha": {"values": "4,8", "when": {one: value}},
                    "lora.alpha_over_rank": {"values": "1,2", "when": {other: another}},
                },
                ["lora.alpha and lora.alpha_over_rank", "of which a run"],
            )
            for (one, value), (other, another) in (
                (("quant", "nf4"), ("lora", "qv")),
                (("lora", "qv"), ("quant", "nf4")),
            )
        ),
    ],
)
def test_two_givers_of_one_key_are_refused(tmp_path, base, space, words):
    message = refusal(tmp_path, base=["data=rule", *base], space=space)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("base", "space"),
    [
        (
            [],
            {
                "scale": {"cases": {"fixed": [], "by_rank": ["lora.alpha_over_rank=2"]}},
                "lora.alpha": {"values": "choice(8, 16)", "when": {"scale": "fixed"}},
            },
        ),
        (
            [],
            {
                "quant": "nf4,int4,none",
                "lora.alpha": {"values": "choice(8, 16)", "when": {"quant": "nf4"}},
                "lora.alpha_over_rank": {"values": "choice(1, 2)", "unless": {"quant": "nf4"}},
            },
        ),
        (["lora.rank=4"], {"sets": {"cases": {"a": ["lora.rank=2"], "b": ["lora=qv"]}}}),
        (
            ["lora.dropout=0.1"],
            {"lora": "qv,mlp", "lora.dropout": {"values": "0.0,0.2", "when": {"lora": "qv"}}},
        ),
        (["optim.lr=1e-3", "optim.lr=2e-3"], {"lora.rank": "2,8"}),
    ],
)
def test_givers_of_one_key_that_never_meet_are_welcome(tmp_path, base, space):
    question = ask(tmp_path, base=["data=rule", *base], space=space)
    assert len(check_space(question)) == question.space.num_points
