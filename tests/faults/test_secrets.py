"""Canaries: keys and passwords that are given in every way, and are then looked for in all that is left."""

import shutil

import pytest
import yaml

from tests.faults.commands import CANARIES, PASSWORD, ends_in_words, files_with_secrets, harness

KEY = CANARIES["WANDB_API_KEY"]
URL = f"https://user:{PASSWORD}@host/x"
HIDDEN = {
    "question": f"Does {KEY} hold, and {URL}?",
    "expect": f"password: {PASSWORD} opens it",
}


def hostile_base(key: str) -> list[str]:
    """Return overrides that change no result and hold secrets, named, by form, or in addresses."""
    return [
        f"tracker.project={key}",
        f"tracker.entity=token-{key}",
        f"tracker.group='{URL}'",
        f"tracker.job_type='password={PASSWORD}'",
        f"tracker.tags=['api_key={key}','{URL}','Authorization: Bearer {key}']",
    ]


@pytest.mark.faults
def test_a_sweep_leaves_no_secret_in_any_file_or_word(ask, tmp_path, tally):
    out = tmp_path / "out"
    base = (f"paths.out={out}", "tracker=wandb_offline", *hostile_base(KEY))
    file = ask(base=base, resources={"devices": "cpu"}, **HIDDEN)
    with tally("secrets of a sweep") as row:
        for words in (
            ["sweep", str(file), "--dry-run"],
            ["plan", str(file)],
            ["sweep", str(file)],
            ["status", "small", f"paths.out={out}"],
            ["status", "small", "--json", f"paths.out={out}"],
            ["report", "small", f"paths.out={out}"],
            ["report", f"paths.out={out}", "--json"],
            ["wandb", "small", f"paths.out={out}", f"tracker.project={KEY}"],
        ):
            done = harness(words, environment=CANARIES)
            row.check(" ".join(words[:2]), lambda done=done: ends_in_words(done))
            row.check(f"{words[0]} ends well", lambda done=done: done.code == 0)
        found = files_with_secrets(out)
        num_files = sum(path.is_file() for path in out.rglob("*"))
        for name in [*found, *[""] * (num_files - len(found))]:
            row.check(name or "file", lambda name=name: not name)
        assert list(out.rglob("*.wandb")), "W&B wrote nothing"


@pytest.mark.faults
def test_a_run_leaves_no_secret_in_any_file_or_word(world, tmp_path, tally):
    out = tmp_path / "out"
    words = [
        *(f"model={world / 'tiny'}", "data=pairs", f"data.path={world / 'sums.jsonl'}"),
        *("data.validation_rows=8", "data.test_rows=8", "data.max_length=512", "optim.steps=1"),
        *("optim.batch_size=2", "eval.generate_rows=2", "eval.max_new_tokens=2"),
        *(f"paths.out={out}", "tracker=wandb_offline", *hostile_base(KEY)),
        *("data.template=chatml", f"data.system=Use {KEY}; password={PASSWORD}"),
    ]
    with tally("secrets of a run") as row:
        for command in (["run", *words], ["run", *words, "--cfg", "job"], ["plan", *words]):
            done = harness([*command], environment=CANARIES)
            row.check(command[0], lambda done=done: ends_in_words(done, (0,)))
        (run,) = (out / "runs").iterdir()
        for command in (["ask", run.name, "hello"], ["export", run.name, "--to", "adapter"]):
            done = harness(
                [*command, f"paths.out={out}"], environment=CANARIES
            )  # nobody knows its system
            row.check(command[0], lambda done=done: ends_in_words(done, (2,)))
        row.check("files", lambda: not files_with_secrets(out) or _fail(files_with_secrets(out)))


def _fail(found: list[str]) -> bool:
    raise AssertionError(", ".join(found[:5]))


ADDRESSES = (
    f"postgresql://u:{PASSWORD}@[::1/x",
    f"postgresql://u:{PASSWORD}@[",
    f"postgresql://u@127.0.0.1:1/x?password={PASSWORD}",
    f"postgresql://u@127.0.0.1:1/x?sslmode=disable&password={PASSWORD}",
    f"postgresql://u:{PASSWORD}@127.0.0.1:1/x",
    f'"postgresql://u:{PASSWORD}@127.0.0.1:1/x"',
    f"'postgresql://u:{PASSWORD}@127.0.0.1:1/x",
    f"postgresql://u:{PASSWORD} @127.0.0.1:1/x",
    f"postgresql:// u@h/x?password={PASSWORD}",
    f"postgresql://u@127.0.0.1:1/x?passfile=/x&sslpassword={PASSWORD}",
)


@pytest.mark.faults
def test_no_command_prints_the_password_of_an_address(ask, tmp_path, tally, capfd):
    from harness.cli.main import dispatch

    file, out = ask(), tmp_path / "out"

    def is_silent(words: list[str]) -> bool:
        code = dispatch(words)
        said = capfd.readouterr()
        assert PASSWORD not in said.out + said.err, said.err[-300:]
        return code in (0, 1, 2) and "a fault of the harness" not in said.err

    with tally("passwords in addresses") as row:
        for number, url in enumerate(ADDRESSES):
            tree = yaml.safe_load(file.read_text()) | {"study": {"storage": url.strip("'\"")}}
            (tmp_path / f"q{number}.yaml").write_text(yaml.safe_dump(tree))
            for words in (
                ["worker", "x", f"study.storage={url}"],
                ["sweep", str(file), f"study.storage={url}", "--dry-run"],
                ["plan", str(file), f"study.storage={url}"],
                ["sweep", str(tmp_path / f"q{number}.yaml"), f"paths.out={out}"],
                ["run", f"study.storage={url}"],
                ["run", f"data.hub={url}"],
                ["run", f"model={url}"],
                ["status", url],
                [url],
            ):
                row.check(f"{words[0]} {url}", lambda words=words: is_silent(words))
        row.check("files", lambda: not files_with_secrets(out))


@pytest.mark.faults
def test_variables_of_the_environment_are_read_by_no_key(
    world, tmp_path, tally, monkeypatch, capfd
):
    from harness.cli.main import dispatch
    from harness.config.compose import known_keys

    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def is_refused(words: list[str]) -> bool:
        code, said = dispatch(words), capfd.readouterr()
        assert not any(value in said.out + said.err for value in CANARIES.values()), said
        return code == 2

    with tally("variables of the environment") as row:
        for key in known_keys():
            words = ["run", f"{key}=${{oc.env:SECRET_TOKEN}}", "--cfg", "job"]
            taken_as_text = dispatch(words) == 0  # a path or a free text that has this name
            said = capfd.readouterr()
            row.check(
                key,
                lambda taken=taken_as_text, said=said, words=words: (
                    CANARIES["SECRET_TOKEN"] not in said.out + said.err
                    and (taken or is_refused(words))
                ),
            )


@pytest.mark.faults
def test_names_that_are_keys_are_refused_before_a_directory_has_them(
    ask, world, tmp_path, tally, monkeypatch, capfd
):
    from harness.cli.main import dispatch

    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    data, model = tmp_path / f"{KEY}.jsonl", tmp_path / KEY
    data.write_bytes((world / "sums.jsonl").read_bytes())
    shutil.copytree(world / "tiny", model)
    place = f"paths.out={tmp_path / 'out'}"
    with tally("keys as names") as row:
        for words in (
            ["sweep", str(ask()), f"name={KEY}", place],
            ["sweep", str(ask(base=(f"data.path={data}",))), place],
            ["run", "data=pairs", f"data.path={data}", place],
            ["run", f"model={model}", place],
        ):
            row.check(f"{words[0]} {words[-2][:10]}", lambda words=words: dispatch(words) == 2)
            said = capfd.readouterr()
            row.check("not said", lambda said=said: KEY not in said.out + said.err)
        row.check("no directory", lambda: not files_with_secrets(tmp_path / "out"))
