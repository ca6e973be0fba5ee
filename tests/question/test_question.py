"""A sweep as it is asked: read from a file, changed on the command line, refused with what would work."""

import subprocess
import sys

import pytest
import yaml

from harness.config.schema import Split
from harness.errors import RequestError
from harness.question.axes import ChoiceAxis, NumberAxis
from harness.question.load import known_sweeps, load_question
from harness.question.settings import Confirmation, Constraint, Method, Objective, PrunerName
from harness.records.metrics import Direction
from tests.question.asking import ask, refusal, write_question

ISSUE = """
question: Does integer storage need a higher LoRA rank than NF4?
expect:   No for asymmetric int4, yes for symmetric at low rank.
base:     [model=embedded, data=facts]
space:
  quant:      choice(nf4, nf4_dq, int4, int4_dq)
  lora.rank:  choice(2, 8, 32)
  optim.lr:   tag(log, interval(1e-3, 3e-2))
search:   {method: tpe, trials: 60, pruner: asha, seeds: [0, 1]}
objective: {eval/loss: minimize}
constraints: {memory/peak_bytes: {at_most: 24GiB}}
confirm:  {top: 3, seeds: [10, 11, 12], split: test}
"""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


# Reading -----------------------------------------------------------------------------------------


def test_the_example_of_a_sweep_is_read_as_it_is_meant(tmp_path):
    file = tmp_path / "rank_by_format.yaml"
    file.write_text(ISSUE)
    question = load_question(str(file), [])
    assert question.name == "rank_by_format"
    assert question.question == "Does integer storage need a higher LoRA rank than NF4?"
    assert question.space.axes == (
        ChoiceAxis("quant", ("nf4", "nf4_dq", "int4", "int4_dq")),
        ChoiceAxis("lora.rank", ("2", "8", "32")),
        NumberAxis("optim.lr", 1e-3, 3e-2, log=True),
    )
    assert (question.search.method, question.search.trials) == (Method.tpe, 60)
    assert (question.search.pruner, question.search.seeds) == (PrunerName.asha, (0, 1))
    assert question.objectives == (Objective(metric="eval/loss", direction=Direction.minimize),)
    assert question.constraints == (Constraint(metric="memory/peak_bytes", at_most=24 * 2**30),)
    assert question.confirm == Confirmation(top=3, seeds=(10, 11, 12), split=Split.test)


def test_what_is_left_out_has_plain_defaults(tmp_path):
    question = ask(tmp_path)
    assert question.name == "asked"
    assert (question.search.method, question.search.trials) == (Method.grid, None)
    assert (question.search.seeds, question.search.pruner) == ((0,), PrunerName.none)
    assert question.objectives == (Objective(metric="eval/loss", direction=Direction.minimize),)
    assert (question.constraints, question.confirm) == ((), None)
    assert (question.resources.devices, question.resources.cohort) == ("auto", None)
    assert question.study.storage is None


RICH = {
    "expect": "It does:\nnot much.",
    "space": {
        "scale": {"cases": {"fixed": ["lora.alpha=16"], "by_rank": ["lora.alpha_over_rank=2"]}},
        "quant": "choice(none, nf4)",
        "quant.block_size": {"values": "choice(32, 64)", "unless": {"quant": "none"}},
        "lora.rslora": "choice(true, false)",
        "lora.init": {"values": "default,gaussian", "when": {"lora.rslora": True}},
        "lora.dropout": {"cases": None, "values": "range(0.0, 0.3, 0.1)"},
        "lora.rank": "int(tag(log, interval(1, 64)))",
        "optim.max_grad_norm": "0.3,null",
        "lora.target_modules": "choice([q_proj, v_proj], [mlp])",
    },
    "search": {
        "method": "nsga2",
        "trials": 7,
        "seeds": [4, 5],
        "sampler_seed": 3,
        "starts": [
            {
                "lora.rank": 8,
                "lora.rslora": True,
                "optim.max_grad_norm": None,
                "lora.dropout": "1e-1",
            }
        ],
    },
    "objective": {"eval/exact_match": None, "adapter/trainable_params": "minimize"},
    "constraints": {"memory/peak_bytes": {"at_most": "1.5 GB"}, "eval/loss": {"at_least": 0.5}},
    "confirm": {"top": 2, "seeds": [9], "split": "validation"},
    "resources": {"devices": [0, 2], "cohort": 4, "hang_seconds": "1e3"},
    "study": {"storage": "postgresql://ada@host/studies"},
}


@pytest.mark.parametrize("parts", [{}, RICH], ids=["least", "rich"])
def test_a_question_written_out_asks_the_same(tmp_path, parts):
    question = ask(tmp_path, **parts)
    written = tmp_path / "written.yaml"
    written.write_text(yaml.safe_dump(question.tree(), sort_keys=False))
    assert load_question(str(written), []) == question


def test_every_part_of_a_rich_question_is_read(tmp_path):
    question = ask(tmp_path, **RICH)
    assert question.expect == "It does: not much."
    assert question.search.starts == (
        {
            "lora.rank": "8",
            "lora.rslora": "true",
            "optim.max_grad_norm": "null",
            "lora.dropout": "0.1",
        },
    )
    assert [o.direction for o in question.objectives] == [Direction.maximize, Direction.minimize]
    assert question.constraints[0].at_most == 1.5e9
    assert question.resources.devices == (0, 2)
    assert question.resources.hang_seconds == 1000.0


def test_a_password_is_not_written_out(tmp_path):
    question = ask(tmp_path, "study.storage=postgresql://ada:secret@host:5432/studies")
    assert question.study.storage == "postgresql://ada:secret@host:5432/studies"
    assert question.tree()["study"]["storage"] == "postgresql://ada@host:5432/studies"


@pytest.mark.parametrize(
    ("limits", "value", "violation"),
    [
        ({"at_most": 10.0}, 12.0, 2.0),
        ({"at_most": 10.0}, 10.0, 0.0),
        ({"at_least": 10.0}, 7.0, 3.0),
        ({"at_least": 10.0, "at_most": 20.0}, 15.0, -5.0),
        ({"at_least": 10.0, "at_most": 20.0}, 22.0, 2.0),
    ],
)
def test_a_limit_is_kept_where_its_violation_is_not_above_zero(limits, value, violation):
    assert Constraint(metric="eval/loss", **limits).violation(value) == violation


@pytest.mark.parametrize(
    ("amount", "count"),
    [
        *(("24GiB", 24 * 2**30), ("8 MB", 8e6), ("1.5KiB", 1536), (1000, 1000), ("1e6", 1e6)),
        *(("2TB", 2e12), ("3 TiB", 3 * 2**40), ("4GB", 4e9), ("5KB", 5e3), ("6MiB", 6 * 2**20)),
        ("7B", 7),
    ],
)
def test_bytes_have_units(tmp_path, amount, count):
    question = ask(tmp_path, constraints={"memory/peak_bytes": {"at_most": amount}})
    assert question.constraints[0].at_most == count


# Evaluations for a pruner ------------------------------------------------------------------------


def test_a_pruner_gets_evaluations_in_the_sight_of_all(tmp_path):
    asked = {"search": {"pruner": "asha"}, "base": ["data=rule", "optim.steps=45"]}
    assert ask(tmp_path, **asked).base[-1] == "eval.every_steps=4"
    asked["base"] = ["data=rule", "optim.steps=5"]
    assert ask(tmp_path, **asked).base[-1] == "eval.every_steps=1"
    asked["base"] = ["data=rule", "eval.every_steps=7"]
    assert ask(tmp_path, **asked).base == ("data=rule", "eval.every_steps=7")
    assert "eval.every_steps=4" in ask(tmp_path, "search.pruner=median").base


@pytest.mark.parametrize(
    ("base", "space"),
    [
        (["data=rule", "optim.epochs=2"], {"lora.rank": "choice(2, 8)"}),
        (["data=rule"], {"optim.steps": "choice(20, 40)"}),
        (["data=rule"], {"long": {"cases": {"a": ["optim.epochs=1"], "b": ["optim.epochs=2"]}}}),
    ],
)
def test_a_pruner_wants_to_be_told_when_to_look_if_steps_are_not_known(tmp_path, base, space):
    message = refusal(tmp_path, base=base, space=space, search={"pruner": "asha"})
    assert "eval.every_steps=N" in message


def test_a_key_that_is_given_twice_in_a_file_is_not_lost(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("question: q\nspace:\n  lora.rank: 2,8\n  lora.rank: 4,16\n")
    with pytest.raises(RequestError, match=r"'lora\.rank' is given twice"):
        load_question(str(file), [])


def test_a_sweep_that_is_not_there_is_refused_with_near_names(tmp_path):
    with pytest.raises(RequestError, match=r"'dmeo'; near names: demo"):
        load_question("dmeo", [])
    with pytest.raises(RequestError, match=r"nowhere\.yaml: no such file"):
        load_question(str(tmp_path / "nowhere.yaml"), [])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(RequestError, match="is a mapping"):
        load_question(str(tmp_path / "list.yaml"), [])
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(RequestError, match="cannot be read as YAML"):
        load_question(str(tmp_path / "broken.yaml"), [])


def test_reading_and_checking_a_question_loads_nothing_heavy(tmp_path):
    file = write_question(tmp_path / "light.yaml", search={"method": "random", "trials": 2})
    code = (
        "import sys\n"
        "from harness.question.load import load_question\n"
        "from harness.question.check_space import check_space\n"
        f"check_space(load_question({str(file)!r}, []))\n"
        "heavy = ('torch', 'transformers', 'wandb', 'optuna', 'datasets', 'peft')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_ready_questions_are_known_by_name():
    assert "demo" in known_sweeps()
    assert known_sweeps()["rank_by_format"].endswith("?")


def test_a_file_of_a_million_bytes_is_read_and_a_larger_one_is_not(tmp_path):
    file = write_question(tmp_path / "asked.yaml")
    text = file.read_text()
    file.write_text(text + "#" * (1_000_000 - len(text)))
    assert load_question(str(file), []).name == "asked"
    file.write_text(text + "#" * (1_000_001 - len(text)))
    with pytest.raises(RequestError, match="more than 1,000,000 bytes"):
        load_question(str(file), [])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"question": ""}, "question must say in words what is asked, got ''"),
        ({"question": None}, "question must say in words what is asked, got nothing"),
        ({"expect": ["a"]}, "expect must say in words what is expected, got ['a']"),
        ({"expect": "  "}, "expect must say in words what is expected, got '  '"),
    ],
)
def test_words_are_said_to_be_missing(tmp_path, parts, words):
    assert words in refusal(tmp_path, **parts)
    assert ask(tmp_path, question=" Does  it\n work? ", expect="").question == "Does it work?"
    for nothing in ("", None):
        assert ask(tmp_path, expect=nothing).expect == ""


def test_numbers_of_a_start_are_spelled_as_their_own_axis_has_them(tmp_path):
    space = {
        "lora.rank": "int(interval(2, 16))",
        "optim.lr": "tag(log, interval(1e-4, 1e-2))",
        "optim.warmup_steps": "range(0, 5)",
    }
    starts = [{"optim.lr": "1e-3", "lora.rank": 8.0, "optim.warmup_steps": 3}]
    search = {"method": "tpe", "trials": 5, "starts": starts}
    (start,) = ask(tmp_path, space=space, search=search).search.starts
    assert start == {"optim.lr": "0.001", "lora.rank": "8", "optim.warmup_steps": "3"}
    search["starts"] = [{"lora.rank": 8.5}]
    assert "lora.rank=8.5 is not in its interval" in refusal(tmp_path, space=space, search=search)
