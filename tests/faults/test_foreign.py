"""Code of others, wherever it may hide: in keys of Hydra, models, tokenizers, data sets and templates."""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.commands.forked import Command, Done
from tests.faults.commands import ends_in_words
from tests.faults.damage import damaged
from tests.faults.tally import TIMES

TOUCH = "import pathlib; pathlib.Path({mark!r}).write_text('ran')\n"
KEYS = (
    "+_target_=os.system",
    "+model._target_=os.system",
    "lora.rank={_target_: os.system}",
    "hydra.callbacks={x: {_target_: builtins.open, file: pwned, mode: w}}",
    "+hydra.callbacks.x={_target_: builtins.open, file: pwned, mode: w}",
    "hydra.searchpath=[file:///tmp]",
    "hydra.run.dir=pwned",
    "hydra.sweep.dir=pwned",
    "hydra.output_subdir=pwned",
    "hydra.job.chdir=true",
    "hydra.job_logging={version: 1, handlers: {f: {class: logging.FileHandler, filename: pwned}}}",
    "hydra/launcher=joblib",
    "hydra/job_logging=default",
    "data.path=../../../etc/passwd",
    "quant=../../x",
    "quant=/etc/passwd",
)


def asked(words: list[str], directory: Path) -> Done:
    return Command(words, directory).end()


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_no_key_runs_code_or_writes_elsewhere(tally, tmp_path):
    few = ["optim.steps=1", "data=rule", "data.train_rows=8", "eval.generate=false", "tracker=none"]
    few += ["data.validation_rows=4", "data.test_rows=4", "optim.batch_size=2", "paths.out=out"]
    with tally("keys that would run code") as row:
        for key in KEYS:
            for flags in ([], ["--cfg", "job"], ["--cfg", "all"], ["--info", "config"]):
                place = tmp_path / "here"
                words = ["run", *few, key, *flags]
                row.check(f"{key} {flags}", lambda w=words, p=place: ends_in_words(asked(w, p)))
                others = {path.name for path in place.iterdir()} - {"out", "stdout", "stderr"}
                row.check(f"{key} {flags}: {others}", lambda others=others: not others)
        row.check("nothing was run", lambda: not list(tmp_path.rglob("pwned")))


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_code_that_comes_with_a_model_or_a_data_set_is_not_run(world, tally, tmp_path):
    mark = tmp_path / "mark"
    code = TOUCH.format(mark=str(mark))
    few = [f"paths.out={tmp_path / 'out'}", "data=rule", "data.train_rows=8", "tracker=none"]

    def with_code(name: str, file: str, change: dict[str, object]) -> Path:
        model = Path(shutil.copytree(world / "tiny", tmp_path / name))
        tree = json.loads((model / file).read_text()) if (model / file).exists() else {}
        (model / file).write_text(json.dumps(tree | change))
        (model / "own.py").write_text(code)
        return model

    automatic = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    models = {
        "model": with_code("a", "config.json", {"auto_map": automatic, "model_type": "own"}),
        "known model": with_code("b", "config.json", {"auto_map": automatic}),
        "tokenizer": with_code(
            "c",
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "tokenizer_class": "Own"},
        ),
    }
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(code)
    templates = {
        "a long range": "{% for i in range(1000000000) %}x{% endfor %}",
        "a hidden attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "an import": "{% import 'os' as os %}",
        "a fault": "{{ 1 // 0 }}",
        "no end": "{% for",
    }
    with tally("code of models, data sets and templates") as row:
        for kind, model in models.items():
            done = asked(["run", f"model={model}", *few], tmp_path / "here")
            row.check(kind, lambda done=done: ends_in_words(done))
            row.check(f"{kind} did not run", lambda: not mark.exists())
        done = asked(["run", f"data.hub={tmp_path / 'set'}", *few[:1]], tmp_path / "here")
        row.check("data set", lambda: ends_in_words(done, (2,)) and not mark.exists())
        for number, (kind, template) in enumerate(templates.items()):
            model = with_code(f"t{number}", "tokenizer_config.json", {"chat_template": template})
            words = ["run", f"model={model}", "data.template=tokenizer", *few]
            row.check(
                kind, lambda words=words: ends_in_words(asked(words, tmp_path / "here"), (2,))
            )


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tries", [16 * TIMES])
def test_a_damaged_model_is_refused_or_trained_as_it_is(world, tries, tally, tmp_path):
    chance = random.Random(71)
    few = ["optim.steps=1", "optim.batch_size=2", "data=pairs", f"data.path={world / 'sums.jsonl'}"]
    few += ["data.validation_rows=4", "data.test_rows=4", "eval=loss", "tracker=none"]
    names = sorted(path.name for path in (world / "tiny").iterdir() if path.is_file())
    with tally("damaged models") as row:
        for number in range(tries):
            model = Path(shutil.copytree(world / "tiny", tmp_path / str(number)))
            file = model / names[number % len(names)]
            what, content = damaged(file.read_bytes(), chance)
            file.write_bytes(content)
            words = ["run", f"model={model}", f"paths.out={tmp_path / 'out'}", *few]
            row.check(
                f"{number} {file.name} {what}",
                lambda words=words: ends_in_words(asked(words, tmp_path / "here")),
            )
