"""Hostile words for every command, in processes of their own that may train, write and hang; seeded."""

import random
from pathlib import Path

import pytest

from harness.cli.options import COMMANDS
from harness.config.compose import group_options, known_keys
from tests.commands.forked import Command
from tests.faults.commands import CANARIES, ends_in_words, files_with_secrets, fresh_harness
from tests.faults.tally import TIMES

VALUES = (
    *(
        "",
        "null",
        "true",
        "-1",
        "0",
        "1",
        "2",
        "64",
        "0.5",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "1e-400",
    ),
    *("1e308", "9" * 40, "9" * 400, "9" * 5000, "0x" + "f" * 400, "1000000000", "2147483648"),
    *("9007199254740993", "[]", "{}", "[1,[2]]", "{a:1}", "{a: {b: 1}}", "'", '"', "\\", "[null]"),
    *("${seed}", "${nope}", "${..seed}", "???", "${oc.env:SECRET_TOKEN}", "${oc.env:HOME}"),
    *("${oc.decode:'[1,2]'}", "${oc.create:{a:1}}", "${oc.select:tracker}", "${hydra:run.dir}"),
    *("a b", "a,b", "é", "\x1b[2J", "\u202e", "\n", "\t", "../../../etc/passwd", "/dev/null"),
    *("/dev/zero", "/dev/urandom", "/proc/self/mem", "/proc/self/environ", "~nobody/x", "~"),
    *("~nosuchuser/x", "-", "--", "x" * 300, "x" * 5000, "http://u:Pa55word@h/x", "%s%n", "{0}"),
    *("$(touch pwned)", "<script>", "\\input{/etc/passwd}", "1_000", "1e3", "0b11", "07", "1:30"),
    *("choice(1,2)", "range(1,1000000000)", "interval(1,2)", "[1,2]", "['a','b']", "*a", "&a"),
)
FEW = (
    *("optim.steps=1", "optim.batch_size=2", "data=rule", "data.train_rows=8", "data.test_rows=4"),
    *("data.validation_rows=4", "data.max_length=64", "eval.generate=false", "tracker=none"),
)
NAMES = ("demo", "rank", "none_such", "../x", "q.yaml", "", "=", "/dev/zero", "\u202e", "x" * 300)
PREFIXES = ("", "", "", "+", "++", "~")


def hostile_words(chance: random.Random) -> list[str]:
    """Return a command line: a command, then what it takes with something odd in it."""
    keys = [*known_keys(), *group_options(), "study.storage", "search.trials", "confirm.seeds"]
    odd = [
        f"{chance.choice(PREFIXES)}{chance.choice(keys)}={chance.choice(VALUES)}"
        for _ in range(chance.choice((1, 1, 1, 2)))
    ]
    command = chance.choice([*COMMANDS, "run", "run"])
    match command:
        case "run":
            return ["run", *FEW, *odd, *chance.choice(([], ["--json"], ["--cfg", "job"]))]
        case "plan":
            flags = ([], ["--json"], ["--explain"], ["--budget", chance.choice(VALUES)])
            return ["plan", *chance.choice(([], FEW, ["rank"])), *odd, *chance.choice(flags)]
        case "sweep":
            return ["sweep", chance.choice(NAMES), *odd, "--dry-run"]
        case _:
            return [command, *chance.choice(([], [chance.choice(NAMES)])), *odd]


def ends(words: list[str], directory: Path) -> bool:
    """Whether a command ends within a minute, in words."""
    command = Command(words, directory, environment={**CANARIES, "COLUMNS": "80"})
    try:
        return ends_in_words(command.end())
    finally:
        command.process.kill()


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tries", [200 * TIMES])
def test_every_command_ends_in_words_whatever_it_is_asked(tries, tally, tmp_path):
    chance, place = random.Random(61), tmp_path / "here"
    with tally("hostile command lines") as row:
        for number in range(tries):
            words = hostile_words(chance)
            row.check(f"{number} {words}"[:200], lambda words=words: ends(words, place))
        row.check("nothing was run", lambda: not list(tmp_path.rglob("pwned")))
        row.check("no secret in a file", lambda: not files_with_secrets(tmp_path))


ENVIRONMENTS = {
    "HOME": ("", "/nonexistent", "relative", "\udcff"),
    "TMPDIR": ("/nonexistent",),
    "COLUMNS": ("0", "-1", "abc", "9" * 20),
    "CUDA_VISIBLE_DEVICES": ("abc", "-1", "0,0,0", "9" * 50, ""),
    "OMP_NUM_THREADS": ("abc", "0", "-5"),
    "HARNESS_CONFIG_DIR": ("/nonexistent", "\n", "~nosuchuser"),
    "HF_HOME": ("/proc/nowhere", ""),
    "WANDB_MODE": ("nonsense",),
    "WANDB_DIR": ("/proc/nowhere",),
    "PYTHONIOENCODING": ("ascii", "utf-16"),
    "LANG": ("C", "xx_XX.nonsense"),
    "TERM": ("dumb", "\x1b"),
    "MPLBACKEND": ("nonsense",),
    "MPLCONFIGDIR": ("/proc/nowhere",),
}


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_an_odd_environment_ends_no_command_in_a_traceback(out, tally):
    place = f"paths.out={out}"
    with tally("odd environments") as row:
        for name, values in ENVIRONMENTS.items():
            for value in values:
                for words in (["status", "small", place], ["plan"]):
                    done = fresh_harness(words, environment={name: value})
                    row.check(f"{name}={value!r} {words[0]}", lambda d=done: ends_in_words(d))
