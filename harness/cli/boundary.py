"""Where a command ends: whatever it met becomes a sentence on standard error and a documented exit code.

Must import nothing heavy: `harness --help` answers in well under a second.
"""

import errno
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from harness.errors import (
    DiskTrouble,
    RequestError,
    RunFailed,
    disk_refusal,
    says_out_of_memory,
)
from harness.records.redact import message, redact

FAULT = 70
"""Exit code for a fault of the harness itself (EX_SOFTWARE of sysexits.h)."""
END_SECONDS = 15.0
"""How long a process may take to end after its last word: what threads and libraries leave may hang."""
_NOT_THERE = {  # the request pointed where nothing can be read or written: nothing was touched
    errno.EACCES: "give a path that this user may use",
    errno.EPERM: "give a path that this user may use",
    errno.EROFS: "give a paths.out that can be written to",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.EISDIR: "it is a directory; give a file",
    errno.ELOOP: "its links lead in a circle; give another path",
}
_IN_THE_MIDDLE = {
    errno.ENOSPC: "free some space; the same command goes on from the last checkpoint",
    errno.EDQUOT: "free some of the quota; the same command goes on from the last checkpoint",
    errno.EIO: "the disk or the terminal failed; the same command goes on from the last checkpoint",
    errno.ESTALE: "the file system was taken away; the same command goes on when it is back",
    errno.ENOENT: "it vanished while it was needed; the same command makes again what it can",
    errno.EMFILE: "too many open files; raise `ulimit -n`, or take fewer runs side by side",
    errno.ENFILE: "too many open files on this machine; try again when it is less busy",
    errno.ENOMEM: "free some memory, or take fewer runs side by side",
    errno.EAGAIN: "too many processes; raise `ulimit -u`, or take fewer devices",
}

_NOT_MAPPED = (
    "failed to map segment from shared object"  # with no word after it, as for a disk's refusal
)
_NO_THREAD = "can't start new thread"
_NUMPY_SAYS = re.compile(r"\d+ requested and \d+ written")  # of a full disk, without its number
_INSTALLED = f"{os.sep}site-packages{os.sep}"
_OWN = str(Path(__file__).parents[1])


def exit_code_of(action: Callable[[], int], words: Sequence[str] = ()) -> int:
    """Do `action`, say on standard error what went wrong, and return the documented exit code.

    `words`: the command line, for the log of a fault of our own.
    """
    try:
        return action()
    except RequestError as error:
        say(str(error))
        return 2
    except RunFailed as error:
        say(str(error))
        return 1
    except DiskTrouble as error:
        say(f"{error}; once that is mended, the same command goes on from the last checkpoint")
        return 1
    except KeyboardInterrupt:
        say("stopped at once; the same command goes on from the last checkpoint")
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        say(disk_sentence(error))
        return 2 if error.errno in _NOT_THERE else 1
    except Exception as error:
        elsewhere = lacking(error) or _of_disk(error) or _unloadable(error)
        if elsewhere is not None:
            say(elsewhere)
            return 1
        say(_fault_sentence(error, words))
        return FAULT


def say(text: str) -> None:
    """Print a message on standard error, line by line, without secrets or control characters."""
    for line in message(text).splitlines():
        print(f"harness: {line}", file=sys.stderr)


def disk_sentence(error: OSError) -> str:
    """Say what the operating system refused, where, and what would help."""
    said = error.strerror or " ".join(str(error).split()) or type(error).__name__
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
    advice = (_NOT_THERE | _IN_THE_MIDDLE).get(error.errno or 0)
    if error.errno is None and _NUMPY_SAYS.search(said):
        said, advice = f"the disk took a part of a file ({said})", _IN_THE_MIDDLE[errno.ENOSPC]
    return f"{said}{where}" + (f"; {advice}" if advice else "")


def lacking(error: Exception) -> str | None:
    """Say what the machine had too little of, or None for an error of another kind.

    Libraries say it in errors of any type: an allocator's refusal is a RuntimeError, that of a library that
    finds no room to be loaded an ImportError.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or says_out_of_memory(text):
        return "out of memory; free some, or ask for less at once"
    if isinstance(error, ImportError) and text.endswith(_NOT_MAPPED):
        return f"out of memory: {text[:200]}; free some, or raise the limit (`ulimit -v`)"
    if _NO_THREAD in text:
        return (
            f"{text[:200]}: too many processes or too little memory; raise `ulimit -u` or free some"
        )
    return None


def _of_disk(error: Exception) -> str | None:
    """Say what a library's own error tells of the disk, or None for one of another kind."""
    refused = disk_refusal(error)
    return None if refused is None else f"{refused}; once that is mended, the same command goes on"


def _unloadable(error: Exception) -> str | None:
    """Say which library failed while it was imported; None for what failed in any other way.

    A file of it may be missing, or a variable of the environment that it reads be no number or address.
    """
    frames = traceback.extract_tb(error.__traceback__)
    imported = [f.filename for f in frames if f.name == "<module>" and _OWN not in f.filename]
    imported = [each for each in imported if _INSTALLED in each]
    if not imported or _OWN in frames[-1].filename:
        return None
    library = imported[0].partition(_INSTALLED)[2].partition(os.sep)[0].removesuffix(".py")
    said = " ".join(str(error).split())
    return (
        f"{library} cannot be loaded here: {type(error).__name__}: {said}; a variable of the environment "
        "that it reads may be wrong, or its installation damaged"
    )


def _fault_sentence(error: Exception, words: Sequence[str]) -> str:
    """Keep the traceback in a file of its own and say in one line where."""
    first = (str(error).strip().splitlines() or [""])[0]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    text = redact("".join([f"harness {' '.join(words)}\n\n", *traceback.format_exception(error)]))
    try:
        name = f"harness-fault-{time.strftime('%Y%m%dT%H%M%S')}-"
        descriptor, log = tempfile.mkstemp(".txt", name, _log_directory(words))
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as refused:
        log = f"nowhere, since {refused.strerror}"
    return f"a fault of the harness itself ({what}); please report it with {log}"


def _log_directory(words: Sequence[str]) -> str:
    given = [word.partition("=")[2] for word in words if word.startswith("paths.out=")]
    out = Path(given[-1] if given else "out")
    return str(out) if out.is_dir() and os.access(out, os.W_OK) else tempfile.gettempdir()


def end(code: int) -> NoReturn:
    """End the process with `code`, whatever threads and libraries still hold on to.

    An alarm, not a thread: where memory has run out, starting one may wait for ever for it to begin.
    """
    signal.signal(signal.SIGALRM, lambda *_: _end_now(code))
    signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
    sys.exit(code)


def _end_now(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)
