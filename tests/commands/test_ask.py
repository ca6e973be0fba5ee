"""`harness ask`: the answers that PEFT would give, alone and in company, streamed, in conversation, kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli.main import dispatch
from harness.commands.ask import _Stream
from harness.commands.saved import find_saved, place_of
from harness.evals.decoding import Sampling
from harness.records.answers import read_answers
from harness.records.run_directory import RunDirectory
from harness.sweeping.state import (
    ConfirmedLine,
    SweepDirectory,
    SweepState,
    SweepStatus,
    write_state,
)
from tests.commands.left_runs import left_run

QUESTION = "Sort the list: pear, apple, fig"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def runs(out: Path) -> list[RunDirectory]:
    """Two runs on one unquantized base, and one on another."""
    return [
        left_run(out, "quant=none", "seed=1"),
        left_run(
            out,
            *("quant=none", "seed=2", "data.template=chatml", "data.system=Be brief."),
            "data.max_length=128",
        ),
        left_run(out, "quant=nf4", "lora.init=pissa"),
    ]


def ask(out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Return what --json prints."""
    capsys.readouterr()
    assert dispatch(["ask", *words, f"paths.out={out}", "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def said(answers: dict[str, Any]) -> dict[str, str]:
    return {each["by"]: each["answer"] for each in answers["answers"]}


def test_an_answer_is_that_of_peft_and_streams_to_the_terminal(out, runs, capsys, pretrained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(pretrained)
    model: Any = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(runs[0].adapter)).eval()
    ids = tokenizer(f"{QUESTION}\n", return_tensors="pt")["input_ids"]
    whole = model.generate(input_ids=ids, do_sample=False, max_new_tokens=40)
    expected = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    name = runs[0].path.name
    capsys.readouterr()
    assert dispatch(["ask", name[-12:], QUESTION, f"paths.out={out}", "--max-tokens", "40"]) == 0
    assert capsys.readouterr().out.strip() == expected.strip() != ""
    (line,) = [json.loads(each) for each in runs[0].asked.read_text().splitlines()]
    assert (line["prompt"], line["answer"]) == (QUESTION, expected)


def test_in_company_each_answers_as_alone_also_where_tokens_are_drawn(out, runs, capsys):
    names = [run.path.name for run in runs]
    drawn = ("--temperature", "2", "--top-p", "0.95", "--seed", "5", "--max-tokens", "24")
    others = [word for name in [*names[1:], "base"] for word in ("--compare", name)]
    together = said(ask(out, capsys, names[0], QUESTION, *others, *drawn))
    assert list(together) == [*names, "base"]
    for name in names:
        assert said(ask(out, capsys, name, QUESTION, *drawn)) == {name: together[name]}
    assert len(set(together.values())) > 2, together  # one seed may draw two alike, of one base


def test_what_is_drawn_depends_on_seed_and_number_and_stays_within_top_p():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    sampling = Sampling(temperature=1.0, top_p=0.75, seed=0)
    generator = sampling.generator(0)
    drawn = [sampling.draw(logits, generator) for _ in range(400)]
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / 400 == pytest.approx(0.5 / 0.8, abs=0.08)
    again = sampling.generator(0)
    assert drawn == [sampling.draw(logits, again) for _ in range(400)]
    assert sampling.generator(1).initial_seed() != again.initial_seed()
    cold = Sampling(temperature=0.01)
    assert {cold.draw(logits, cold.generator(n)) for n in range(50)} == {0}


def test_a_conversation_is_answered_as_its_messages_would_be(
    out, runs, capsys, monkeypatch, tmp_path
):
    name = runs[1].path.name
    lines = iter([QUESTION, "And backwards?", "/new", "And backwards?"])
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())

    def typed(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    capsys.readouterr()
    assert dispatch(["ask", name, f"paths.out={out}", "--max-tokens", "16"]) == 0
    kept = [json.loads(line)["answer"] for line in runs[1].asked.read_text().splitlines()][-3:]
    assert [a.strip() for a in kept] == [
        line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()
    ] or all(answer in "".join(kept) for answer in kept)
    user, answer = ({"role": role} for role in ("user", "assistant"))
    asked = [
        {"messages": [{**user, "content": QUESTION}]},
        {
            "messages": [
                {**user, "content": QUESTION},
                {**answer, "content": kept[0]},
                {**user, "content": "And backwards?"},
            ]
        },
        {"prompt": "And backwards?"},
    ]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in asked))
    found = ask(out, capsys, name, "--file", str(file), "--max-tokens", "16")
    assert [said(each)[name] for each in found] == kept


def test_prompts_of_a_run_are_answered_before_and_after_and_stand_in_the_report(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{QUESTION}\n\nSay <b>hello</b>\n")
    run = left_run(tmp_path, f"data.answers={prompts}", "eval.max_new_tokens=8", "optim.steps=2")
    kept = read_answers(run.answers)
    assert [(each.phase, each.row, each.asked) for each in kept] == [
        (phase, row, True) for phase in ("before", "after") for row in (0, 1)
    ]
    assert QUESTION in kept[0].prompt
    assert dispatch(["report", f"paths.out={tmp_path}"]) == 0
    page = next((tmp_path / "report").glob("index.html")).read_text()
    assert QUESTION in page
    assert "Say &lt;b&gt;hello" in page
    again = left_run(tmp_path, "eval.max_new_tokens=8", "eval.generate=true", "optim.steps=2")
    assert again.path.name != run.path.name


def test_a_stream_shows_whole_characters_and_nothing_of_the_turns_end(pretrained):
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(pretrained)
    text = "naïve 🙂 end<|im_end|>\n"
    stream = _Stream(tokenizer, "<|im_end|>")
    parts = [stream.push(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    whole, rest = stream.end()
    assert "".join(parts) + rest == whole == "naïve 🙂 end"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        ([], ["a run, a sweep or `base`"]),
        (["nobody", "hi"], ["nobody", "no run or sweep"]),
        (["base", "one", "two"], ["one prompt at a time"]),
        (["base", "hi", "--top-p", "0.5"], ["--top-p", "temperature"]),
        (["base", "hi", "--temperature", "hot"], ["--temperature hot", "a number"]),
        (["base", "hi", "--max-tokens", "0"], ["--max-tokens 0", "at least 1"]),
        (["base", "--file", "none.jsonl"], ["none.jsonl", "no such file"]),
        (["base", "hi", "--file", "none.jsonl"], ["one of them"]),
        (["base", "hi", "data.system=Be kind."], ["data.system", "no chat template"]),
        (["base", "hi", "--sed", "1"], ["--sed", "--seed"]),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, words, reasons, capsys):
    assert dispatch(["ask", *words, *([f"paths.out={tmp_path}"] if words else [])]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(reason in shown.err for reason in reasons), shown.err


def test_a_sweep_answers_by_the_best_of_its_confirmed_cells(out, runs):
    names = [run.path.name for run in runs]
    directory = SweepDirectory(out, "asked")
    directory.path.mkdir(parents=True)
    state = SweepState(
        name="asked",
        question="",
        expect="",
        method="random",
        objectives={"eval/loss": "minimize"},
        trials_requested=2,
        status=SweepStatus.finished,
        confirmed=[
            ConfirmedLine(point={}, trial=0, runs=names[:1], values={"eval/loss": [2.0, 1.8]}),
            ConfirmedLine(
                point={}, trial=1, runs=["gone", names[1]], values={"eval/loss": [1.5, 1.6]}
            ),
            ConfirmedLine(point={}, trial=2, runs=names[2:], values={"eval/loss": []}),
        ],
    )
    write_state(directory, state)
    place = place_of([f"paths.out={out}"])
    assert find_saved("asked", place).name == names[1]
    state.objectives = {"eval/loss": "maximize"}
    write_state(directory, state)
    assert find_saved("asked", place).name == names[0]


def test_runs_that_are_not_there_whole_are_refused(out, runs, capsys, tmp_path):
    assert dispatch(["ask", "embedded", "hi", f"paths.out={out}"]) == 2
    assert "begins the ids of 3 runs" in capsys.readouterr().err
    assert dispatch(["ask", runs[0].path.name, "hi", "lora.rank=4", f"paths.out={out}"]) == 2
    assert "lora.rank=4 would be ignored" in capsys.readouterr().err
    record = json.loads(runs[0].record.read_text())
    for change, reason in (
        ({"status": "diverged"}, "only a completed run leaves an adapter"),
        ({"provenance": {"model_fingerprint": "sha256:0"}}, "not what"),
    ):
        other = tmp_path / reason[:4].strip()
        other.mkdir()
        (other / "run.json").write_text(json.dumps(record | change))
        (other / "adapter").symlink_to(runs[0].adapter)
        assert dispatch(["ask", str(other), "hi", f"paths.out={out}"]) == 2
        assert reason in capsys.readouterr().err
