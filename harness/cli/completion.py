"""What Hydra's own command line answers for ours: its options, and the completion of a line in a shell."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.cli.options import CFG, COMMANDS, FLAGS_OF, INFO, RUN_FLAGS
from harness.errors import RequestError

SHELLS = ("bash", "zsh", "fish")


def complete(arguments: list[str]) -> int:
    """Answer Hydra's shell completion; the shell asks with the whole line in COMP_LINE."""
    action, _, shell = (arguments[0] if len(arguments) == 1 else "").partition("=")
    if action not in ("install", "uninstall", "query") or shell not in SHELLS:
        raise RequestError(
            f"-sc {' '.join(arguments)}".rstrip()
            + " is no request for shell completion; write -sc install=bash (or zsh, fish), and "
            'eval "$(harness -sc install=bash)" to use it'
        )
    if action == "query":
        line = os.environ.get("COMP_LINE", "")
        words = line.split() + ([""] if line.endswith(" ") else [])
        if len(words) <= 2:
            _print_completions((*COMMANDS, "--help", "--version"), words[-1] if words else "")
            return 0
        command = words[1]
        if words[-1].startswith("-"):
            _print_completions(FLAGS_OF.get(command, RUN_FLAGS), words[-1])
            return 0
        names_sweep = command in ("sweep", "plan") and len(words) == 3 and "=" not in words[-1]
        if command in ("status", "report") or names_sweep:
            _print_completions(_sweep_names(command), words[-1])
            return 0
        if command in ("ask", "evaluate", "export") and (
            len(words) == 3 or words[-2] == "--compare"
        ):
            _print_completions(_run_names(command), words[-1])
            return 0
        if command == "export" and words[-2] == "--to":
            from harness.export.card import FORMS

            _print_completions(FORMS, words[-1])
            return 0
        if words[-2] in ("--cfg", "-c", "--info", "-i"):
            _print_completions(CFG if words[-2] in ("--cfg", "-c") else INFO, words[-1])
            return 0
        overrides = [word for word in words[2:-1] if "=" in word]
        # Hydra knows one command, not commands of a script.
        os.environ["COMP_LINE"] = " ".join([words[0], *overrides, words[-1]])
    run_hydra(["harness", "-sc", *arguments])
    return 0


def _sweep_names(command: str) -> list[str]:
    """Return the sweeps that have run; where one can be begun, after the questions that are ready."""
    out = Path(os.environ.get("HARNESS_OUT") or "out")
    begun = sorted(path.parent.name for path in (out / "sweeps").glob("*/state.json"))
    if command not in ("sweep", "plan"):
        return begun
    from harness.question.load import known_sweeps

    return list(dict.fromkeys([*known_sweeps(), *begun]))


def _run_names(command: str) -> list[str]:
    """Return the runs and sweeps under out/, and the base where it can be asked."""
    runs = sorted(path.parent.name for path in Path("out/runs").glob("*/run.json"))
    return [*runs, *_sweep_names(command), *(["base"] if command == "ask" else [])]


def _print_completions(words: Iterable[str], prefix: str) -> None:
    print("\n".join(word for word in words if word.startswith(prefix)))


def run_hydra(argv: list[str]) -> None:
    """Run Hydra's command line on our configuration, with a task that does nothing."""
    import hydra

    from harness.config.compose import conf_directory, own_directory_words, register_schema

    register_schema()
    sys.argv = [argv[0], *own_directory_words(), *argv[1:]]
    hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")(
        lambda _: None
    )()
