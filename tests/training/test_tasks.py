"""Tasks of lm-evaluation-harness: its own model's numbers on PEFT's adapter, for all adapters at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.lm_eval_tasks import write_tasks
from harness.config.schema import EvalConfig, LoraConfig, QuantConfig, QuantFormat
from harness.engine.adapter import Adapter
from harness.errors import RequestError
from harness.evals.evaluate import Results
from harness.evals.task_scoring import load_tasks
from harness.records.metrics import METRICS, Direction, is_task_metric
from harness.records.record import read_record
from harness.records.scores import read_scores
from harness.training.evaluation import score_side_by_side
from harness.training.pass_size import PassSizer
from harness.training.session import Queue, train
from harness.training.stop import StopRequest

pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")

BATCH = 4


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    write_tasks(directory, rows=8)
    return directory


@dataclass
class Scored:
    """Two adapters on one base: scored together, the second alone, and by lm-evaluation-harness."""

    together: list[Results]
    alone: Results
    theirs: dict[str, Any]


def spread(adapter: Adapter, seed: int) -> Adapter:
    """Give an adapter an effect: PEFT leaves B at zero."""
    noise = torch.Generator().manual_seed(seed)
    for name, parameter in adapter.parameters.items():
        if ".lora_B." in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=noise))
    return adapter


@pytest.fixture(scope="module")
def scored(make_base, pretrained, tasks, tmp_path_factory) -> Scored:
    shared = make_base(QuantConfig(format=QuantFormat.none))
    adapters = [
        spread(
            shared.attach(LoraConfig(rank=rank, alpha=2.0 * rank, target_modules=[where]), 0), rank
        )
        for rank, where in ((2, "all_linear"), (4, "attention"))
    ]
    saved = tmp_path_factory.mktemp("adapter")
    shared.save(adapters[1], saved)
    asked = EvalConfig(tasks=[str(tasks)], batch_size=BATCH)
    return Scored(
        together=score_side_by_side(shared, adapters, asked),
        alone=score_side_by_side(shared, adapters[1:2], asked)[0],
        theirs=by_lm_eval(pretrained, saved, sorted(map(str, tasks.glob("*.yaml")))),
    )


def by_lm_eval(model: Path, adapter: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """Return what its own `hf` model scores, as its command line calls it."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    evaluate: Any = simple_evaluate  # whose decorator hides its parameters
    found = evaluate(
        model="hf",
        model_args={"pretrained": str(model), "peft": str(adapter), "dtype": "float32"},
        tasks=list(tasks),
        batch_size=BATCH,
        device="cpu",
        task_manager=TaskManager(include_defaults=False),
    )
    assert found is not None
    return dict(found)


def named(theirs: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Return value and standard error by our names."""
    found = {}
    for task, values in theirs["results"].items():
        for key, value in values.items():
            metric, comma, chosen_by = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = values[f"{metric}_stderr,{chosen_by}"]
                words = ["eval", task, metric, *([chosen_by] if chosen_by != "none" else [])]
                found["/".join(words)] = (value, None if error == "N/A" else error)
    return found


def numbers(results: Results) -> dict[str, tuple[float, float | None]]:
    return {name: (each.value, each.standard_error) for name, each in results.items()}


def assert_same(found: dict[str, tuple[float, float | None]], expected: Any) -> None:
    """What counts items is the same; a mean of likelihoods but for the order in which a processor sums."""
    assert found.keys() == expected.keys()
    for name, pair in found.items():
        counts = name.split("/")[2] in ("acc", "acc_norm", "exact_match")
        for number, other in zip(pair, expected[name], strict=True):
            exact = counts or other is None
            assert number == (other if exact else pytest.approx(other, rel=2e-6)), name


def test_every_score_and_its_error_is_what_lm_eval_finds(scored):
    assert_same(numbers(scored.alone), named(scored.theirs))
    kinds = {name.split("/")[1] for name in scored.alone}
    assert kinds == {"stories_choice", "stories_last_word", "stories_text", "stories_answer"}


def test_adapters_in_one_pass_score_what_each_scores_alone(scored):
    assert_same(numbers(scored.together[1]), numbers(scored.alone))
    bits = {each["eval/stories_text/bits_per_byte"].value for each in scored.together}
    assert len(bits) == 2  # each is its own
    assert [(each.tasks or {})["copies"] for each in (*scored.together, scored.alone)] == [2, 2, 1]
    asked = {(each.tasks or {})["requests"] for each in (*scored.together, scored.alone)}
    assert len(asked) == 1  # a request is one, however many answer it


def test_what_is_asked_before_training_is_asked_after_it(make_base, tasks):
    asked = EvalConfig(tasks=[str(tasks / "stories_choice.yaml")], limit=3)
    shared = make_base(QuantConfig(format=QuantFormat.none))
    prompts, scores = [], []
    for _ in range(2):
        scores.append(numbers(score_side_by_side(shared, [None], asked)[0]))
        (task,) = load_tasks(asked)["tasks"].values()
        prompts.append([request.args for request in task.instances])
    assert prompts[0] == prompts[1]  # the solved examples, which are drawn, too
    assert scores[0] == scores[1]


def test_scores_of_documents_have_their_metric_as_mean(scored):
    for results in scored.together:
        kept = {name for name in results if not name.endswith("perplexity")}
        assert results.scores.keys() == kept
        for name, scores in results.scores.items():
            assert sum(scores.sums) / sum(scores.weights) == pytest.approx(results[name].value)
            assert len(set(scores.rows)) == results[name].n


def test_which_way_is_better_is_what_lm_eval_says_of_its_metrics():
    from lm_eval.api.registry import higher_is_better_registry as registry

    known = {name: METRICS[f"eval/any/{name}"].direction for name in registry}  # no mapping
    of = {True: Direction.maximize, False: Direction.minimize}
    wrong = {
        name: direction
        for name, direction in known.items()
        if name != "bypass" and direction is not of[registry[name]]
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generation_kwargs": {"do_sample": True, "temperature": 0.7}}, ["do_sample", "greedy"]),
        ({"generation_kwargs": {"num_beams": 4}}, ["num_beams=4", "greedy"]),
        ({"generation_kwargs": {"max_gen_toks": 512}}, ["512", "max_gen_toks"]),
    ],
)
def test_answers_that_are_not_given_here_are_refused(make_base, tasks, tmp_path, change, words):
    import yaml

    tree = yaml.safe_load((tasks / "stories_answer.yaml").read_text()) | change
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(tree))
    shared = make_base(QuantConfig(format=QuantFormat.none))
    with pytest.raises(RequestError) as error:
        score_side_by_side(shared, [None], EvalConfig(tasks=[str(file)], limit=1))
    assert all(word in str(error.value) for word in words), error.value


def test_a_chat_template_that_is_not_there_is_refused(make_base, tasks):
    shared = make_base(QuantConfig(format=QuantFormat.none))
    asked = EvalConfig(tasks=[str(tasks / "stories_choice.yaml")], apply_chat_template=True)
    with pytest.raises(RequestError, match="chat template"):
        score_side_by_side(shared, [None], asked)


def test_documents_that_are_not_there_are_refused_before_anything_is_trained(tasks, tmp_path):
    text = (tasks / "stories_choice.yaml").read_text()
    (tmp_path / "lost.yaml").write_text(text.replace("stories_choice.jsonl", "nowhere.jsonl"))
    with pytest.raises(RequestError, match=r"nowhere\.jsonl"):
        load_tasks(EvalConfig(tasks=[str(tmp_path / "lost.yaml")]))


def test_ifeval_on_rows_of_ones_own_and_what_needs_more_data_is_refused(tmp_path, monkeypatch):
    nltk = pytest.importorskip("nltk")
    closed = StringIO()
    closed.close()  # what stderr was when nltk was imported
    monkeypatch.setattr(nltk, "download", partial(nltk.download, print_error_to=closed))
    rows = [
        '{"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}',
        '{"key": 2, "prompt": "p", "instruction_id_list": ["length_constraints:number_sentences"], '
        '"kwargs": [{"relation": "at least", "num_sentences": 1}]}',
    ]
    file = own_rows(tmp_path, "ifeval", rows[:1], "train")
    (task,) = load_tasks(EvalConfig(tasks=[file]))["tasks"].values()
    said = [task.process_results(task.eval_docs[0], [text]) for text in ("a b", "a, b")]
    assert [each["prompt_level_strict_acc"] for each in said] == [True, False]
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        with pytest.raises(RequestError, match=r"1 of the 2 documents .* punkt_tab"):
            load_tasks(EvalConfig(tasks=[own_rows(tmp_path, "ifeval", rows, "train")]))


def test_gsm8k_on_rows_of_ones_own_by_both_of_its_filters(tmp_path):
    rows = ['{"question": "What is 3 + 4?", "answer": "3 + 4 is 7 #### 7"}']
    file = own_rows(tmp_path, "gsm8k", rows, "test", "train")
    (task,) = load_tasks(EvalConfig(tasks=[file], num_fewshot=0))["tasks"].values()
    assert task.get_config("num_fewshot") == 0
    task.build_all_requests(limit=1, rank=0, world_size=1)
    (request,) = task.instances
    found = {}
    for text in ("It is 7. #### 7", "It is 7.", "#### 8", "none"):
        request.resps, request.filtered_resps = [text], {}
        task.apply_filters()
        found[text] = [
            task.process_results(request.doc, [request.filtered_resps[by]])["exact_match"]
            for by in ("strict-match", "flexible-extract")
        ]
    assert found == {
        "It is 7. #### 7": [1, 1],
        "It is 7.": [0, 1],
        "#### 8": [0, 0],
        "none": [0, 0],
    }


def own_rows(directory: Path, task: str, rows: Sequence[str], *splits: str) -> str:
    """Write one of lm-evaluation-harness's tasks on rows of one's own; return its file."""
    import lm_eval

    package = Path(lm_eval.__file__).parent
    data, file = directory / f"{task}{len(rows)}.jsonl", directory / f"{task}{len(rows)}.yaml"
    data.write_text("\n".join(rows) + "\n")
    files = ", ".join(f"{split}: {data}" for split in splits)
    file.write_text(
        f"include: {package}/tasks/{task}/{task}.yaml\ntask: own_{task}{len(rows)}\n"
        f"dataset_path: json\ndataset_name: null\ndataset_kwargs: {{data_files: {{{files}}}}}\n"
    )
    return str(file)


def test_runs_of_a_cohort_keep_scores_errors_documents_and_cost(make_base, make_job, tasks):
    shared = make_base(QuantConfig(format=QuantFormat.none))
    asked = {"tasks": [str(tasks / "stories_choice.yaml")], "limit": 3}
    jobs = [
        make_job(shared, f"run{rank}", eval=asked, lora=LoraConfig(rank=rank, alpha=8.0))
        for rank in (2, 4)
    ]
    for _ in train(shared, Queue(jobs), sizer=PassSizer(max_slots=2), stop=StopRequest()):
        pass
    for job in jobs:
        record = read_record(job.directory.record)
        for phase in ("before", "after"):
            of_tasks = {name for name in record.evals[phase] if is_task_metric(name)}
            assert of_tasks == {"eval/stories_choice/acc", "eval/stories_choice/acc_norm"}
            assert {record.evals[phase][name].n for name in of_tasks} == {3}
            scores = read_scores(job.directory.scores, phase)
            assert [*scores["eval/stories_choice/acc"].rows] == [0, 1, 2]
            about = record.provenance["lm_eval"][phase]
            assert about["tasks"]["stories_choice"]["num_fewshot"] == 2
            assert about["requests"] == 12  # four choices of three documents
            assert any(f"eval.tasks {phase} training: 12 requests" in note for note in record.notes)


def test_a_key_of_tasks_without_tasks_is_refused():
    from harness.config.compose import compose_run
    from harness.config.validate import validate

    for override in ("eval.num_fewshot=5", "eval.limit=10", "eval.apply_chat_template=true"):
        with pytest.raises(RequestError, match=r"eval\.tasks names none"):
            validate(compose_run([override]))
    for limit in ("0", "-1", "2.5", ".nan"):
        with pytest.raises(RequestError, match=r"eval\.limit"):
            validate(compose_run(["eval.tasks=[gsm8k]", f"eval.limit={limit}"]))
