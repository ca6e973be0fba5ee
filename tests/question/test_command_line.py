"""What is typed after a sweep's name changes its axes, its base and its settings, each as it is meant."""

import shlex
import subprocess

import pytest

from harness.config.compose import compose_run
from harness.errors import RequestError
from harness.question.axes import ChoiceAxis, Condition
from harness.question.check_space import check_space
from harness.question.question import Question
from harness.question.settings import Confirmation, Method
from tests.question.asking import QUICK, ask, refusal


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def axes_of(question: Question) -> dict[str, str]:
    return {axis.key: axis.described for axis in question.space.axes}


SPACE = {
    "quant.format": "choice(none, nf4, int4)",
    "quant.double_quant": {"values": "choice(false, true)", "unless": {"quant.format": "none"}},
    "lora.rank": "choice(2, 8)",
}


def test_an_axis_is_replaced_in_its_place_and_keeps_its_condition(tmp_path):
    question = ask(tmp_path, "quant.format=choice(none,fp4)", "lora.rank=2,4,8", space=SPACE)
    assert list(axes_of(question)) == ["quant.format", "quant.double_quant", "lora.rank"]
    assert question.space.axes[0] == ChoiceAxis("quant.format", ("none", "fp4"))
    assert question.space.axes[1].condition == Condition("quant.format", frozenset({"fp4"}))
    assert question.space.axes[2] == ChoiceAxis("lora.rank", ("2", "4", "8"))


def test_a_new_axis_comes_last_and_takes_the_key_out_of_the_base(tmp_path):
    axes = ("optim.steps=choice(20,40)", "optim.lr=tag(log,interval(1e-4,1e-2))")
    question = ask(tmp_path, *axes, "search.method=random", "search.trials=5", space=SPACE)
    assert list(axes_of(question))[3:] == ["optim.steps", "optim.lr"]
    assert question.base == ("data=rule", "tracker=none")


@pytest.mark.parametrize(
    ("fixed", "left"),
    [
        ("none", ["lora.rank"]),
        ("int4", ["quant.double_quant", "lora.rank"]),
        ("fp4", ["quant.double_quant", "lora.rank"]),
    ],
)
def test_a_fixed_axis_decides_the_conditions_on_it(tmp_path, fixed, left):
    question = ask(tmp_path, f"quant.format={fixed}", space=SPACE)
    assert list(axes_of(question)) == left
    assert all(axis.condition is None for axis in question.space.axes)
    assert question.base == (*QUICK, f"quant.format={fixed}")


def test_a_case_is_chosen_or_fixed_by_its_label(tmp_path):
    space = {
        "targets": {"cases": {"qv": ["lora=qv", "lora.rank=4"], "mlp": ["lora=mlp"], "all": []}},
        "lora.dropout": {"values": "choice(0.0, 0.1)", "when": {"targets": "mlp"}},
    }
    some = ask(tmp_path, "targets=choice(all,mlp)", space=space)
    assert some.space.axes[0].choices == ("all", "mlp")
    one = ask(tmp_path, "targets=qv", space=space)
    assert one.base == (*QUICK, "lora=qv", "lora.rank=4")
    assert one.space.axes == ()
    assert "targets=qw" in refusal(tmp_path, "targets=qw", space=space)
    gone = ask(tmp_path, "targets=choice(qv,all)", space=space)
    assert list(axes_of(gone)) == ["targets"]


def test_a_plain_override_is_one_of_every_run_and_replaces_the_files(tmp_path):
    base = ["data=rule", "optim.steps=40", "lora.alpha=16", "lora=qv"]
    overrides = ("optim.steps=9", "lora=mlp", "resources.device=cpu", "+optim.beta1=0.8")
    question = ask(tmp_path, *overrides, base=base)
    assert question.base == (
        "data=rule",
        "optim.steps=9",
        "lora.alpha=16",
        "lora=mlp",
        "resources.device=cpu",
        "+optim.beta1=0.8",
    )


def test_one_of_a_pair_takes_the_place_of_the_other(tmp_path):
    base = [*QUICK, "lora.alpha=16"]
    question = ask(tmp_path, "lora.alpha_over_rank=2", "optim.epochs=2", base=base)
    assert question.base == (
        "data=rule",
        "tracker=none",
        "lora.alpha_over_rank=2",
        "optim.epochs=2",
    )
    assert compose_run(question.base).lora.alpha is None
    space = {"lora.alpha": "choice(8, 16)", "lora.rank": "choice(2, 8)"}
    swept = ask(tmp_path, "lora.alpha_over_rank=choice(1,2)", space=space)
    assert list(axes_of(swept)) == ["lora.rank", "lora.alpha_over_rank"]
    message = refusal(tmp_path, "lora.alpha=8", "lora.alpha_over_rank=choice(1,2)")
    assert "lora.alpha" in message
    assert "of which a run has one" in message


def test_the_parts_of_a_question_are_changed_by_their_names(tmp_path):
    question = ask(
        tmp_path,
        "name=other",
        "question=Does it, now?",
        "search.method=tpe",
        "search.trials=9",
        "search.seeds=[3]",
        "search.starts=[{lora.rank: 8}]",
        "confirm.top=2",
        "resources.devices=cpu:2",
        "resources.cohort=3",
        "study.storage=sqlite:////tmp/a b.db",
        confirm={"seeds": [10, 11]},
    )
    assert (question.name, question.question) == ("other", "Does it, now?")
    assert (question.search.method, question.search.trials) == (Method.tpe, 9)
    assert (question.search.seeds, question.search.starts) == ((3,), ({"lora.rank": "8"},))
    assert question.confirm == Confirmation(top=2, seeds=(10, 11))
    assert (question.resources.devices, question.resources.cohort) == ("cpu:2", 3)
    assert question.study.storage == "sqlite:////tmp/a b.db"
    assert question.base == tuple(QUICK)
    assert ask(tmp_path, "confirm=null", confirm={"seeds": [10]}).confirm is None
    assert (
        ask(tmp_path, "study.storage=null", study={"storage": "sqlite:///a.db"}).study.storage
        is None
    )


@pytest.mark.parametrize(
    ("typed", "objectives", "limit"),
    [
        ("objective=eval/exact_match", ["eval/exact_match"], None),
        ("objective={eval/loss:minimize}", ["eval/loss"], None),
        ("objective=[eval/loss,memory/peak_bytes]", ["eval/loss", "memory/peak_bytes"], None),
        (
            "'objective={eval/loss: minimize, memory/peak_bytes: minimize}'",
            ["eval/loss", "memory/peak_bytes"],
            None,
        ),
        ("constraints={memory/peak_bytes:{at_most:8GiB}}", ["eval/loss"], 8 * 2**30),
        ("'constraints={memory/peak_bytes: {at_most: 8GiB}}'", ["eval/loss"], 8 * 2**30),
    ],
)
def test_metrics_are_typed_in_a_shell_as_documented(tmp_path, typed, objectives, limit):
    shell = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {typed}"], capture_output=True, text=True, check=True
    )
    (override,) = shell.stdout.splitlines()
    assert override == shlex.split(typed)[0]
    question = ask(tmp_path, override)
    assert [objective.metric for objective in question.objectives] == objectives
    assert [constraint.at_most for constraint in question.constraints] == ([limit] if limit else [])


def test_constraints_can_be_taken_away(tmp_path):
    constraints = {"memory/peak_bytes": {"at_most": "1GiB"}}
    assert ask(tmp_path, "constraints=null", constraints=constraints).constraints == ()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nonsense/lora=all", ["unknown key", "nonsense/lora"]),
        ("lora.rnk=4", ["'lora.rnk'", "lora.rank"]),
        ("lora.rnk=choice(2,4)", ["lora.rnk", "lora.rank"]),
        ("lora.rank=choice()", ["lora.rank=choice()", "empty"]),
        ("quant=choice(nf4,nf5)", ["quant=nf5", "nf4"]),
        ("quant=nf5", ["quant=nf5", "nf4"]),
        ("search.trails=5", ["search.trails", "trials"]),
        ("serch.trials=5", ["serch.trials", "search.trials"]),
        ("search.trials=0", ["search.trials=0"]),
        ("search.seeds=0,1", ["search.seeds", "[a,b]"]),
        ("seed=1", ["search.seeds"]),
        ("resources.device=choice(cpu,cuda)", ["resources.device", "result"]),
        ("resources.devises=cpu", ["resources.devises", "resources.devices"]),
        ("objective.eval=minimize", ["objective={eval/loss:minimize}"]),
        (
            "constraints.memory/peak_bytes.at_most=1",
            ["constraints={memory/peak_bytes:{at_most:8GiB}}"],
        ),
        ("confirm.top=2", ["confirm.seeds"]),
        ("name=a b", ["name='a b'"]),
        ("nonsense", ["'nonsense'"]),
        ("~lora.rank", ["~lora.rank", "axis"]),
        ("+lora.rank=4", ["+lora.rank=4", "axis"]),
    ],
)
def test_a_wrong_override_is_refused_and_the_file_is_not_blamed(tmp_path, override, words):
    with pytest.raises(RequestError) as refused:
        check_space(ask(tmp_path, override))
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert "asked.yaml" not in message


@pytest.mark.parametrize(
    ("override", "axis"),
    [
        ("data.system=You are kind, and brief.", None),
        ("data.system=choice('a, b', c)", "choice('a, b', c)"),
        ("data.path=one,file.jsonl", None),
        ("data.path=a.jsonl,b.jsonl", "choice(a.jsonl, b.jsonl)"),
        ("data.response_column=answer (gold)", None),
        ("tracker.project=mine, not yours", None),
        ("paths.out=a,b", None),
    ],
)
def test_a_text_with_commas_is_an_axis_only_where_it_cannot_be_one_text(
    tmp_path, monkeypatch, override, axis
):
    monkeypatch.chdir(tmp_path)
    rows = '{"prompt": "q", "response": "r"}\n' * 8
    for name in ("one,file.jsonl", "a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(rows)
    base = ["data=pairs", "data.path=a.jsonl", "optim.steps=40", "tracker=none"]
    question = ask(tmp_path, override, base=base)
    key, _, value = override.partition("=")
    if axis is None:
        assert list(axes_of(question)) == ["lora.rank"]
        section, _, field = key.partition(".")
        config = compose_run(question.base)
        assert getattr(getattr(config, section), field) == value
    else:
        assert axes_of(question)[key] == f"{key}: {axis}"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("'Is it?'", "Is it?"),
        ('"Is it?"', "Is it?"),
        ("''Is it?''", "'Is it?'"),
        ("It is 'so'", "It is 'so'"),
        ("'It' is", "'It' is"),
        ("'It is\"", "'It is\""),
        ("'a'b", "'a'b"),
        ("'", "'"),
        ("abba", "abba"),
    ],
)
def test_quotes_around_a_whole_text_are_taken_off(tmp_path, given: str, text: str) -> None:
    assert ask(tmp_path, f"question={given}").question == text
