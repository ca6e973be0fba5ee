"""`harness ask`: answers of runs that have ended, beside each other and beside their base.

Torch is imported only when everything that can be refused without it has been.
"""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands.saved import find_saved, place_of
from harness.config.compose import compose_run, group_options, known_keys
from harness.config.schema import DataForm, RunConfig, Template
from harness.data.example import Role, Turn
from harness.data.prompts import Prompt, prompt_of, read_prompts
from harness.errors import RequestError
from harness.question.keys import key_of
from harness.records.record import utc_now
from harness.records.redact import printable, redact
from harness.request import SavedRun, saved_base
from harness.training.libraries import import_libraries

if TYPE_CHECKING:
    from harness.engine.adapter import Adapter
    from harness.engine.shared_base import SharedBase
    from harness.evals.decoding import Sampling

ASK_HELP = """\
usage: harness ask RUN|SWEEP|base ["PROMPT"] [key=value…] [--compare RUN|SWEEP|base]… [--file FILE]
                   [--temperature T] [--top-p P] [--seed N] [--max-tokens N] [--json]

Answers with the run's own template, system message and stop tokens, as they are generated. RUN is a run's
id, the start or the hash of it, or its directory; a sweep answers by its best run; `base` is the untouched
base: the run's that is asked beside it, or else that of key=value (model=, quant=, data.system=, …).
Without a prompt it talks until end of input (Ctrl-D); /new forgets what was said.

  --compare    ask another one, too, as often as you like; what shares a base is computed side by side
  --file       answer every prompt of a .jsonl (columns prompt or messages) or .txt file (one a line)
  --temperature 0, the default, takes the most likely token; above 0 draws, from the share --top-p of them
  --seed       of what is drawn; the same seed draws the same answer, alone or in company
  --max-tokens of an answer (256)

Answers are kept in asked.jsonl of each run's directory; those of a base alone, in that of paths.out.
"""

BASE = "base"
MAX_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFlags:
    """What the options say."""

    compare: Sequence[str] = ()
    file: str | None = None
    temperature: str = "0"
    top_p: str = "1"
    seed: str = "0"
    max_tokens: str = str(MAX_TOKENS)
    as_json: bool = False


@dataclass(slots=True)
class _Voice:
    """One that answers, with what it has said so far in this conversation."""

    saved: SavedRun
    label: str
    said: list[Turn] = field(default_factory=list)

    @property
    def asked_alike(self) -> str:
        """What voices must have in common to be given a prompt in the same tokens."""
        data = self.saved.config.data
        return f"{data.form} {data.template} {data.system} {self.said}"


@dataclass(slots=True)
class _Loaded:
    """A base in memory with the adapters of the voices that share it."""

    shared: "SharedBase"
    adapters: "dict[str, Adapter | None]"


def ask_command(words: Sequence[str], flags: AskFlags) -> int:
    """Answer a prompt, the prompts of a file, or a person at the terminal; return the exit code."""
    names, prompt, overrides = _read(words)
    sampling = _sampling(flags)
    max_tokens = _number(flags.max_tokens, "--max-tokens", int, least=1)
    voices = _voices([*names, *flags.compare], overrides)
    config = voices[0].saved.config
    if prompt is not None and flags.file is not None:
        raise RequestError(f"a prompt, {prompt!r}, and --file {flags.file}: give one of them")
    if flags.file is not None:
        prompts = list(read_prompts(flags.file, config.data, "--file"))
    elif prompt is not None or not sys.stdin.isatty():
        text = _piped() if prompt is None else prompt
        if not text.strip():
            raise RequestError("an empty prompt asks nothing; give a text")
        prompts = [prompt_of(text, config.data)]
    else:
        prompts = None
    import_libraries()
    asking = _Asking(voices, sampling, max_tokens, Path(config.paths.out))
    if prompts is None:
        if flags.as_json:
            raise RequestError(
                "--json needs a prompt or --file: a conversation has no end to print it at"
            )
        asking.talk()
        return 0
    found = [
        asking.answer(number, each, shows=not flags.as_json, heads=len(prompts) > 1)
        for number, each in enumerate(prompts)
    ]
    if flags.as_json:
        shown = found if flags.file is not None else found[0]
        print(json.dumps(shown, ensure_ascii=False, indent=1))
    return 0


# What is asked, and who answers ------------------------------------------------------------------


def _piped() -> str:
    """Return what a pipe brings; raises RequestError where it is no text."""
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the prompt that is piped in is no UTF-8 text (byte {error.start}: {error.reason}); pipe "
            "text, or give the prompt in quotes"
        ) from None


def _read(words: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Return who is asked, the prompt, and the overrides: texts in front of whose `=` is a key."""
    if not words:
        raise RequestError(
            "harness ask needs a run, a sweep or `base` first; see harness ask --help"
        )
    known = {*known_keys(), *group_options()}
    overrides = [w for w in words[1:] if "=" in w and key_of(w) in known]
    texts = [w for w in words[1:] if w not in overrides]
    if len(texts) > 1:
        raise RequestError(
            f"one prompt at a time, got {len(texts)}: {', '.join(map(repr, texts[:3]))}; quote a prompt of "
            "several words, or give --file"
        )
    return [words[0]], texts[0] if texts else None, overrides


def _voices(names: Sequence[str], overrides: Sequence[str]) -> list[_Voice]:
    """Find everybody that is asked; `base` is the first run's, or the one that the overrides describe."""
    runs = [name for name in dict.fromkeys(names) if name != BASE]
    if not runs:
        return [_Voice(saved_base(_base_config(overrides)), BASE)]
    place = place_of(overrides)
    found = {name: find_saved(name, place) for name in runs}
    first = found[runs[0]]
    voices: list[_Voice] = []
    for name in dict.fromkeys(names):
        saved = found.get(name) or SavedRun(BASE, first.config, first.source, first.fingerprint)
        if saved.name not in [voice.label for voice in voices]:
            voices.append(_Voice(saved, saved.name))
    return voices


def _base_config(overrides: Sequence[str]) -> RunConfig:
    """Return what a base alone is asked with: its own chat template, where none is chosen."""
    config = compose_run(overrides)
    chosen = {"data", "data.template", "data.form", "experiment"}
    if not chosen & {key_of(override) for override in overrides}:
        config.data.form, config.data.template = DataForm.messages, Template.tokenizer
    return config


def _sampling(flags: AskFlags) -> "Sampling | None":
    temperature = _number(flags.temperature, "--temperature", float, least=0)
    top_p = _number(flags.top_p, "--top-p", float, least=0)
    seed = _number(flags.seed, "--seed", int, least=0)
    if not 0 < top_p <= 1:
        raise RequestError(f"--top-p {flags.top_p} must be above 0 and at most 1")
    if temperature == 0:
        for name, value, default in (("--top-p", top_p, 1), ("--seed", seed, 0)):
            if value != default:
                raise RequestError(f"{name} would be ignored: nothing is drawn at --temperature 0")
        return None
    import_libraries()
    from harness.evals.decoding import Sampling

    return Sampling(temperature=temperature, top_p=top_p, seed=seed)


def _number(text: str, name: str, kind: type, *, least: int) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not least <= value <= 1e9:
        wanted = "a whole number" if kind is int else "a number"
        raise RequestError(
            f"{name} {text or 'without a value'} must be {wanted} of at least {least}"
        )
    return value


# Answering ---------------------------------------------------------------------------------------


class _Asking:
    """Everybody that answers, loaded, and how."""

    def __init__(
        self, voices: list[_Voice], sampling: "Sampling | None", max_tokens: int, out: Path
    ) -> None:
        self._voices = voices
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._out = out
        self._loaded = _load(voices)
        for voice in voices:
            _settle_template(voice, self._loaded[voice.saved.base_key].shared)

    def answer(
        self, number: int, prompt: Prompt, *, shows: bool, heads: bool = False
    ) -> dict[str, Any]:
        """Answer one prompt by every voice, print the answers as they come, and keep them."""
        asked = _asked_text(prompt)
        if shows and heads:
            _print(f"> {asked}\n")
        answers = []
        for group in _groups(self._voices):
            for voice, text, tokens in self._answers(group, number, prompt, shows=shows):
                self._keep(voice, asked, text)
                answers.append({"by": voice.label, "answer": text, "tokens": tokens})
        order = [voice.label for voice in self._voices]
        answers.sort(key=lambda each: order.index(each["by"]))
        return {"prompt": asked, "reference": prompt.reference, "answers": answers}

    def talk(self) -> None:
        """Answer a person at the terminal, each answer after what was said before."""
        print("Ctrl-D ends, /new forgets what was said", file=sys.stderr)
        number = 0
        while True:
            try:
                text = input("> ").strip()
            except EOFError:
                print(file=sys.stderr)
                return
            if text == "/new":
                for voice in self._voices:
                    voice.said.clear()
            elif text:
                said = self.answer(
                    number, prompt_of(text, self._voices[0].saved.config.data), shows=True
                )
                number += 1
                for voice, each in zip(self._voices, said["answers"], strict=True):
                    _remember(voice, text, each["answer"])

    def _answers(
        self, group: Sequence[_Voice], number: int, prompt: Prompt, *, shows: bool
    ) -> "Iterator[tuple[_Voice, str, int]]":
        """Yield the answers of voices that share a base and are given the same tokens."""
        from harness.data.templates import prompt_ids, stop_ids, turn_end
        from harness.evals.generation import Decoding
        from harness.training.evaluation import answer_side_by_side

        loaded, data = self._loaded[group[0].saved.base_key], group[0].saved.config.data
        tokenizer = loaded.shared.base.tokenizer
        example = prompt.example
        if group[0].said:
            example = prompt_of(_asked_text(prompt), data, tuple(group[0].said)).example
        ids = prompt_ids(example, data, tokenizer)
        streams = [
            _Stream(tokenizer, turn_end(data, tokenizer) if example.has_prompt else "")
            for _ in group
        ]
        heads = len(self._voices) > 1
        if shows and heads:
            _print(f"[{group[0].label}]\n")

        def tell(copy: int, _: int, token: int) -> None:
            new = streams[copy].push(token)
            if shows and copy == 0:
                _print(new)

        decoding = Decoding(
            batch_size=1,
            max_new_tokens=self._fitting(loaded.shared, len(ids)),
            extra_stop_ids=stop_ids(data, tokenizer),
            sampling=self._numbered(number),
            tell=tell,
        )
        adapters = [loaded.adapters[voice.label] for voice in group]
        (generated, *others) = answer_side_by_side(loaded.shared, adapters, [ids], decoding)
        for index, (voice, each) in enumerate(zip(group, (generated, *others), strict=True)):
            text, rest = streams[index].end()
            if shows:
                head = f"[{voice.label}]\n" if heads and index else ""
                _print(f"{head}{text if index else rest}\n")
            yield voice, text, each.num_new_tokens[0]

    def _fitting(self, shared: "SharedBase", prompt_tokens: int) -> int:
        """Return how many tokens an answer may have: as asked, and as the model's context has room for."""
        from harness.evals.context import context_length

        context = context_length(shared.model)
        if context is None:
            return self._max_tokens
        return max(1, min(self._max_tokens, max(context - prompt_tokens, context // 4)))

    def _numbered(self, number: int) -> "Sampling | None":
        """Return the sampling of one prompt: those of a file draw apart, each alike alone or in company."""
        sampling = self._sampling
        return None if sampling is None else replace(sampling, seed=sampling.seed + number)

    def _keep(self, voice: _Voice, prompt: str, answer: str) -> None:
        directory = voice.saved.directory
        file = self._out / "asked.jsonl" if directory is None else directory.asked
        draws = self._sampling
        line = {
            "at": utc_now(),
            "by": voice.label,
            "model": voice.saved.config.model.name,
            "prompt": redact(prompt),
            "answer": redact(answer),
            "max_tokens": self._max_tokens,
            "temperature": draws.temperature if draws else 0,
            "top_p": draws.top_p if draws else 1,
            "seed": draws.seed if draws else None,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line, ensure_ascii=False) + "\n")


class _Stream:
    """An answer that grows token by token: what can be shown of it, and how it ends."""

    def __init__(self, tokenizer: Any, end: str) -> None:
        self._tokenizer = tokenizer
        self._end = end
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """Return the text that can be shown now: whole characters, and nothing that may be the turn's end."""
        self._ids.append(token)
        text = self._text()
        held = next((n for n in range(len(self._end), 0, -1) if text.endswith(self._end[:n])), 0)
        ready = len(text.rstrip("\N{REPLACEMENT CHARACTER}")) if not held else len(text) - held
        new, self._shown = text[self._shown : ready], max(self._shown, ready)
        return new

    def end(self) -> tuple[str, str]:
        """Return the whole answer, and what of it was not shown."""
        text = self._text()
        return text, text[self._shown :]

    def _text(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text.partition(self._end)[0] if self._end else text


def _load(voices: Sequence[_Voice]) -> dict[str, _Loaded]:
    """Load each base once, with all the adapters that share it."""
    from harness.base.quick_imports import quiet_libraries
    from harness.training.launch import attach_saved, open_base

    quiet_libraries()
    found: dict[str, _Loaded] = {}
    for voice in voices:
        saved = voice.saved
        if voice.saved.base_key not in found:
            shared = open_base(saved.config, saved.source, saved.fingerprint)
            found[voice.saved.base_key] = _Loaded(shared, {})
        loaded = found[voice.saved.base_key]
        loaded.adapters[voice.label] = attach_saved(loaded.shared, saved)
    return found


def _settle_template(voice: _Voice, shared: "SharedBase") -> None:
    """Let a base without a chat template be asked in plain text."""
    data = voice.saved.config.data
    chats = data.template is Template.tokenizer
    if voice.saved.record is None and chats and not shared.base.tokenizer.chat_template:
        if data.system is not None:
            raise RequestError(
                f"data.system would be ignored: model={voice.saved.config.model.name} has no chat template; "
                "choose data.template=chatml, or leave it out"
            )
        data.template = Template.plain


def _groups(voices: Sequence[_Voice]) -> Iterable[list[_Voice]]:
    """Return the voices that can be computed side by side; a base without adapter is alone."""
    found: dict[str, list[_Voice]] = {}
    for voice in voices:
        alone = "" if voice.saved.directory is not None else voice.label
        found.setdefault(f"{voice.saved.base_key} {voice.asked_alike} {alone}", []).append(voice)
    return found.values()


def _remember(voice: _Voice, asked: str, answer: str) -> None:
    """Keep what was said, where the template has words for more than one exchange."""
    data = voice.saved.config.data
    if data.form is not DataForm.text and data.template is not Template.alpaca:
        voice.said += [Turn(Role.user, asked), Turn(Role.assistant, answer)]


def _asked_text(prompt: Prompt) -> str:
    """Return what was asked last, without the template."""
    example = prompt.example
    if not example.has_prompt:
        return example.text
    asked = [turn.text for turn in example.turns if turn.role is Role.user][-1]
    return f"{asked}\n{example.input}" if example.input else asked


def _print(text: str) -> None:
    print(printable(text), end="", flush=True)
