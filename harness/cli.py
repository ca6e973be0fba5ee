"""The console script: fixed words first, then Hydra's override grammar.

Must import nothing heavy: `harness --help` answers in well under a second.
"""

import os
import sys
from collections.abc import Sequence

from harness.errors import RequestError, near_names

COMMANDS = {"run": "train, measure and evaluate one LoRA adapter on one base"}

USAGE = """\
usage: harness COMMAND [override…] [--json]

commands:
{commands}

  harness run --help           groups, options and keys of a run
  harness run --cfg job        the composed configuration
  harness run lora.rank=4      any key of the configuration; quant=int4 picks an option of a group
  harness -sc install=bash     shell completion: eval "$(harness -sc install=bash)"

exit codes: 0 done; 1 the work failed; 2 the request was wrong and nothing was touched;
130 interrupted, the same command resumes
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with the documented code."""
    sys.exit(dispatch(list(sys.argv[1:] if arguments is None else arguments)))


def dispatch(arguments: list[str]) -> int:
    """Return the exit code of one command line."""
    try:
        return _dispatch(arguments)
    except RequestError as error:
        for line in str(error).splitlines():
            print(f"harness: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "harness: stopped at once; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {n:<8} {what}" for n, what in COMMANDS.items())))
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        from harness import __version__

        print(__version__)
        return 0
    if command in ("-sc", "--shell-completion"):
        return _complete(rest)
    if command not in COMMANDS:
        raise RequestError(
            f"unknown command {command!r}{near_names(command, COMMANDS)}; "
            f"commands: {', '.join(COMMANDS)}"
        )
    as_json = "--json" in rest
    rest = [argument for argument in rest if argument != "--json"]
    if any(argument.startswith("-") for argument in rest):
        return _hydra_flags(command, rest)
    from harness.commands.run import run_command

    return run_command(rest, as_json=as_json)


def _hydra_flags(command: str, arguments: list[str]) -> int:
    """Let Hydra answer its own flags (--help, --cfg, --info, --hydra-help, …); nothing is trained."""
    import hydra

    from harness.compose import conf_directory, prepare_overrides, register_schema

    flags = [argument for argument in arguments if argument.startswith("-")]
    answers = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version")
    if not any(flag.split("=")[0] in answers for flag in flags):
        raise RequestError(
            f"unknown option {flags[0]!r}{near_names(flags[0], answers)}; `harness {command}` takes "
            f"key=value overrides, --json, {', '.join(answers)}"
        )
    register_schema()
    overrides = [a for a in arguments if not a.startswith("-") and "=" in a]
    others = [a for a in arguments if a not in overrides]
    sys.argv = [f"harness {command}", *others, *prepare_overrides(overrides)]
    hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")(
        lambda _: None
    )()
    return 0


def _complete(arguments: list[str]) -> int:
    """Answer Hydra's shell completion; the shell asks with the whole line in COMP_LINE."""
    import hydra

    from harness.compose import conf_directory, register_schema

    words = os.environ.get("COMP_LINE", "").split(" ")
    if arguments and arguments[0].startswith("query=") and len(words) <= 2:
        print("\n".join(name for name in COMMANDS if name.startswith(words[-1])))
        return 0
    register_schema()
    if len(words) > 2 and words[1] in COMMANDS:  # Hydra knows one command, not commands of a script
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    sys.argv = ["harness", "-sc", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")(
        lambda _: None
    )()
    return 0
