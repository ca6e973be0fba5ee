"""The console script: fixed words first, then Hydra's override grammar.

Must import nothing heavy: `harness --help` answers in well under a second.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from harness.cli.boundary import end, exit_code_of
from harness.cli.options import (
    ASK_FLAGS,
    CFG,
    COMMANDS,
    DATA_FLAGS,
    DOCTOR_FLAGS,
    EVALUATE_FLAGS,
    EXPORT_FLAGS,
    INFO,
    OWN_GROUPS,
    PLAN_FLAGS,
    PUSH_FLAGS,
    REPORT_FLAGS,
    RUN_FLAGS,
    STATUS_FLAGS,
    SWEEP_FLAGS,
    WANDB_FLAGS,
    WORKER_FLAGS,
)
from harness.errors import RequestError, near_names
from harness.records.redact import printable, redact
from harness.training.stop import leave_terminal

USAGE = """\
usage: harness run    [-m [--dry-run]] [override…] [--json]
       harness sweep  NAME|FILE [override…] [--dry-run] [--json]
       harness worker NAME [override…]
       harness data   [override…] [--rows 3] [--split train] [--json]
       harness plan   [NAME|FILE] [override…] [--budget 24GiB] [--explain] [--probe] [--table] [--json]
       harness status [NAME] [--json]
       harness report [NAME…] [--source records|wandb-offline|wandb] [--watch] [--json]
       harness report NAME --serve [--port 8765] [--json]
       harness ask    RUN|SWEEP|base ["PROMPT"] [override…] [--compare RUN|base] [--file FILE] [--json]
       harness evaluate RUN|SWEEP… eval.tasks=[TASK,…] [override…] [--json]
       harness export RUN|SWEEP --to adapter|merged|merged_4bit|gguf [--out DIR] [--json]
       harness push   DIR OWNER/NAME [--data] [--public] [--json]
       harness wandb  [NAME] [--paths] [--json]
       harness doctor [override…] [--json]

commands:
{commands}

  harness run --help           groups, options and keys of a run
  harness run --cfg job        the composed configuration
  harness run lora.rank=4      any key of the configuration; quant=int4 picks an option of a group
  harness run -m lora.rank=2,8 every combination of the values given, as a sweep
  harness run --config-dir DIR groups and options of your own: DIR/GROUP/OPTION.yaml
  harness sweep                the questions that are ready in sweeps/
  harness sweep --help         axes, search, confirmation
  harness -sc install=bash     shell completion: eval "$(harness -sc install=bash)"

exit codes: 0 done; 1 the work failed; 2 the request was wrong and nothing was touched;
70 a fault of the harness itself; 130 interrupted, the same command resumes
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with the documented code."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has asked to go on
        signal.signal(signal.SIGHUP, _terminated)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    end(dispatch(list(sys.argv[1:] if arguments is None else arguments)))


def _open_streams() -> None:
    """Give streams that were closed somewhere to go: the next files opened would get their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  (for the process's life)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does. While a run trains, `harness.training.stop` has a politer handler."""
    if number == signal.SIGHUP:
        leave_terminal()
    raise KeyboardInterrupt


def dispatch(arguments: list[str]) -> int:
    """Return the exit code of one command line."""
    return exit_code_of(lambda: _dispatch(arguments), arguments)


MAX_WORD = 20_000
"""Characters of one word of the command line that are looked at."""


def _dispatch(arguments: list[str]) -> int:
    for word in arguments:
        if "\0" in word or len(word) > MAX_WORD:
            what = "a NUL character" if "\0" in word else f"{len(word):,} characters"
            raise RequestError(f"{word!r} has {what}; give a word of at most {MAX_WORD:,} others")
    if not arguments:
        print(_usage(), end="", file=sys.stderr)
        return 2
    command, rest = arguments[0], arguments[1:]
    match command:
        case "-h" | "--help" | "help":
            print(_usage(), end="")
            return 0
        case "--version":
            from harness import __version__

            print(__version__)
            return 0
        case "-sc" | "--shell-completion":
            from harness.cli.completion import complete

            return complete(rest)
        case _ if command not in COMMANDS:
            known = (*COMMANDS, "--help", "--version", "-sc")
            raise RequestError(
                f"unknown command {command!r}{near_names(command, known)}; "
                f"commands: {', '.join(COMMANDS)}"
            )
    match command:
        case "sweep":
            return _sweep(rest)
        case "worker":
            return _worker(rest)
        case "data":
            return _data(rest)
        case "plan":
            return _plan(rest)
        case "status":
            return _status(rest)
        case "report":
            return _report(rest)
        case "wandb":
            return _wandb(rest)
        case "doctor":
            return _doctor(rest)
        case "ask":
            return _ask(rest)
        case "evaluate":
            return _evaluate(rest)
        case "export":
            return _export(rest)
        case "push":
            return _push(rest)
        case _:
            return _run(command, rest)


def _run(command: str, rest: list[str]) -> int:
    flags, overrides = _split(command, rest, RUN_FLAGS)
    names = [flag[0] for flag in flags]
    if "--help" in names or "-h" in names:
        from harness.commands.help import run_help

        print(run_help(overrides), end="")
        return 0
    if "-m" in names or "--multirun" in names:
        return _multirun(names, overrides)
    if "--dry-run" in names:
        raise RequestError(
            "--dry-run goes with -m, which has several runs to show; `harness plan` says what one needs"
        )
    if any(name != "--json" for name in names):
        return _hydra_flags(command, flags, overrides)
    from harness.commands.run import run_command

    return run_command(overrides, as_json="--json" in names)


def _multirun(names: list[str], overrides: list[str]) -> int:
    others = [name for name in names if name not in ("-m", "--multirun", "--json", "--dry-run")]
    if others:
        raise RequestError(
            f"-m goes with --dry-run and --json only, got {', '.join(others)} as well"
        )
    from harness.commands.multirun import multirun_command

    return multirun_command(overrides, dry_run="--dry-run" in names, as_json="--json" in names)


def _sweep(rest: list[str]) -> int:
    flags, words = _split("sweep", rest, SWEEP_FLAGS)
    names = [flag[0] for flag in flags]
    if "--help" in names or "-h" in names or not words:
        from harness.commands.help import sweep_help

        print(sweep_help(), end="")
        return 0
    from harness.commands.sweep import sweep_command

    return sweep_command(
        words[0], words[1:], dry_run="--dry-run" in names, as_json="--json" in names
    )


def _worker(rest: list[str]) -> int:
    flags, words = _split("worker", rest, WORKER_FLAGS)
    if flags:
        from harness.commands.worker import WORKER_HELP

        print(WORKER_HELP, end="")
        return 0
    if not words or "=" in words[0]:
        raise RequestError(
            "harness worker needs the name of a sweep first; see harness worker --help"
        )
    from harness.commands.worker import worker_command

    return worker_command(words[0], words[1:])


def _plan(rest: list[str]) -> int:
    flags, words = _split("plan", rest, PLAN_FLAGS)
    values = {flag[0]: flag[1] if len(flag) > 1 else "" for flag in flags}
    if "--help" in values or "-h" in values:
        from harness.commands.help import plan_help

        print(plan_help(), end="")
        return 0
    from harness.commands.plan import plan_command

    if "--table" in values:
        return _plan_table(values, words)
    return plan_command(
        words,
        budget=values.get("--budget"),
        explain="--explain" in values,
        probe="--probe" in values,
        as_json="--json" in values,
    )


def _data(rest: list[str]) -> int:
    flags, words = _split("data", rest, DATA_FLAGS)
    values = {flag[0]: flag[1] if len(flag) > 1 else "" for flag in flags}
    from harness.commands.data import DATA_HELP, data_command

    if "--help" in values or "-h" in values:
        print(DATA_HELP, end="")
        return 0
    return data_command(
        words,
        rows=values.get("--rows"),
        split=values.get("--split"),
        as_json="--json" in values,
        out=values.get("--out"),
        license_=values.get("--license"),
    )


def _plan_table(flags: dict[str, str], words: list[str]) -> int:
    from harness.commands.plan_table import plan_table

    others = sorted(set(flags) - {"--table", "--json"})
    if others:
        raise RequestError(f"--table goes with --json only, got {', '.join(others)} as well")
    return plan_table(words, as_json="--json" in flags)


def _status(rest: list[str]) -> int:
    flags, words = _split("status", rest, STATUS_FLAGS)
    names = [flag[0] for flag in flags]
    if "--help" in names or "-h" in names:
        print("usage: harness status [NAME] [paths.out=DIRECTORY] [--json]")
        return 0
    from harness.commands.status import status_command

    return status_command(words, as_json="--json" in names)


def _report(rest: list[str]) -> int:
    flags, words = _split("report", rest, REPORT_FLAGS)
    values = {flag[0]: flag[1] if len(flag) > 1 else "" for flag in flags}
    if "--help" in values or "-h" in values:
        from harness.commands.report import REPORT_HELP

        print(REPORT_HELP, end="")
        return 0
    from harness.commands.report import report_command, serve_command, source_of

    if "--serve" in values or "--port" in values:
        return serve_command(words, values)
    return report_command(
        words,
        watch="--watch" in values,
        as_json="--json" in values,
        source=source_of(values.get("--source")),
    )


def _wandb(rest: list[str]) -> int:
    flags, words = _split("wandb", rest, WANDB_FLAGS)
    names = [flag[0] for flag in flags]
    from harness.commands.wandb import WANDB_HELP, wandb_command

    if "--help" in names or "-h" in names:
        print(WANDB_HELP, end="")
        return 0
    return wandb_command(words, only_paths="--paths" in names, as_json="--json" in names)


def _doctor(rest: list[str]) -> int:
    flags, words = _split("doctor", rest, DOCTOR_FLAGS)
    names = [flag[0] for flag in flags]
    from harness.commands.doctor import DOCTOR_HELP, doctor_command

    if "--help" in names or "-h" in names:
        print(DOCTOR_HELP, end="")
        return 0
    return doctor_command(words, as_json="--json" in names)


def _ask(rest: list[str]) -> int:
    flags, words = _split("ask", rest, ASK_FLAGS)
    from harness.commands.ask import ASK_HELP, AskFlags, ask_command

    values = {flag[0]: flag[1] if len(flag) > 1 else "" for flag in flags}
    if "--help" in values or "-h" in values:
        print(ASK_HELP, end="")
        return 0
    given = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in values.items()
        if name not in ("--compare", "--json")
    }
    compare = [flag[1] for flag in flags if flag[0] == "--compare"]
    return ask_command(words, AskFlags(compare=compare, as_json="--json" in values, **given))


def _evaluate(rest: list[str]) -> int:
    flags, words = _split("evaluate", rest, EVALUATE_FLAGS)
    names = [flag[0] for flag in flags]
    from harness.commands.evaluate import EVALUATE_HELP, evaluate_command

    if "--help" in names or "-h" in names:
        print(EVALUATE_HELP, end="")
        return 0
    return evaluate_command(words, as_json="--json" in names)


def _export(rest: list[str]) -> int:
    flags, words = _split("export", rest, EXPORT_FLAGS)
    from harness.commands.export import EXPORT_HELP, export_command

    values = {flag[0]: flag[1] if len(flag) > 1 else "" for flag in flags}
    if "--help" in values or "-h" in values:
        print(EXPORT_HELP, end="")
        return 0
    return export_command(
        words,
        to=values.get("--to"),
        out=values.get("--out"),
        into=values.get("--into"),
        types=values.get("--types"),
        license_=values.get("--license"),
        as_json="--json" in values,
    )


def _push(rest: list[str]) -> int:
    flags, words = _split("push", rest, PUSH_FLAGS)
    from harness.commands.push import PUSH_HELP, push_command

    names = [flag[0] for flag in flags]
    if "--help" in names or "-h" in names:
        print(PUSH_HELP, end="")
        return 0
    kind = "dataset" if "--data" in names else "model"
    return push_command(words, kind=kind, public="--public" in names, as_json="--json" in names)


def _usage() -> str:
    return USAGE.format(commands="\n".join(f"  {n:<9} {what}" for n, what in COMMANDS.items()))


# Options -----------------------------------------------------------------------------------------


def _split(
    command: str, arguments: list[str], known: dict[str, int]
) -> tuple[list[list[str]], list[str]]:
    """Return the options, each with its value if it has one, and the overrides.

    --config-dir, which means the same to every command, is put into the environment, where the processes
    find it, too, that the command starts.
    """
    flags: list[list[str]] = []
    overrides: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in known or (equals and not known[name]):
            raise RequestError(
                f"unknown option {argument!r}{near_names(name, known)}; `harness {command}` takes "
                f"key=value overrides and {', '.join(known)}"
            )
        flag = [name]
        if known[name]:
            flag.append(value if equals else next(waiting, ""))
        if name in OWN_GROUPS:
            _use_groups_in(flag[1])
        else:
            flags.append(flag)
    return flags, overrides


def _use_groups_in(directory: str) -> None:
    from harness.config.compose import CONFIG_DIR_VARIABLE
    from harness.parsing import home_path

    if not directory:
        raise RequestError("--config-dir needs a directory, which holds GROUP/OPTION.yaml")
    os.environ[CONFIG_DIR_VARIABLE] = str(home_path(directory).absolute())


def _hydra_flags(command: str, flags: list[list[str]], overrides: list[str]) -> int:
    """Let Hydra answer its own options (--cfg, --info, --hydra-help); nothing is trained."""
    from harness.cli.completion import run_hydra
    from harness.config.compose import compose_run, prepare_overrides

    for name, *value in flags:
        for names, choices in ((("--cfg", "-c"), CFG), (("--info", "-i"), INFO)):
            if name in names and value[0] not in choices:
                got = value[0] or "nothing"
                raise RequestError(f"{name} takes one of {', '.join(choices)}, got {got}")
    compose_run(overrides)  # refuses what is wrong in our words
    words = [word for flag in flags if flag[0] != "--json" for word in flag]
    shows_job = any(flag in (["--cfg", "job"], ["-c", "job"]) for flag in flags)
    if shows_job and "--resolve" not in words:
        words.append("--resolve")  # what would run, not how it is derived
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run_hydra([f"harness {command}", *words, *prepare_overrides(overrides)])
    finally:  # Hydra ends the process where it has refused something
        print(printable(redact(said.getvalue())), end="")
    return 0
