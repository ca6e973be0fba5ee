"""Take secrets out of text and configurations before they reach disk or W&B. Standard library only.

Three things give a secret away: it is the value of an environment variable whose name says so, it has
the well-known form of a credential, or the name in front of it says so. Git commits and sha256
fingerprints have none of the three and survive.
"""

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"

_MIN_ENVIRONMENT_SECRET = (
    8  # characters; shorter values ("on", "cpu", "8888") occur in innocent text
)

_WORD = re.compile(r"[a-z0-9]+")

# Names. A name is split into lower-case words at punctuation and camelCase humps; whole words decide,
# so `max_new_tokens`, `tokenizer` and `monkey` are not names of secrets.
_SECRET_WORDS = frozenset(
    _WORD.findall("""
    password passwd passphrase passcode secret secrets credential credentials apikey
    authorization privatekey secretkey accesskey authtoken accesstoken
    """)
)
_SECRET_ENDS = ("password", "passwd", "passphrase", "apikey")
"""Of the last word of a name: PGPASSWORD, sslpassword."""
# `<owner>_key` is a secret, `sort_key` and a bare `key` are not
_KEY_OWNERS = frozenset(
    _WORD.findall("""
    api access secret private encryption signing account storage master session license ssh
    deploy service subscription client wandb openai anthropic hf huggingface aws azure gcp
    google github
    """)
)
# `<word>_token` is a piece of vocabulary or a count, not a secret
_TOKENIZER_WORDS = frozenset(
    _WORD.findall("""
    pad eos bos unk mask cls sep image audio special start end stop first last next per new
    added decoder forced prefix suffix middle sink generated target label
    """)
)
_ENVIRONMENT_WORDS = _SECRET_WORDS | {"key", "keys", "token", "auth", "pat", "pwd", "pass"}
_LOCATION_WORDS = frozenset(
    {"path", "file", "dir", "directory", "url", "host", "name", "id", "sock"}
)
_NOT_SECRET_VALUES = frozenset({"", "none", "null", "true", "false", "~", REDACTED})

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# Forms, each matching the secret alone unless it names a group `keep`, which survives in front of it.
_START = r"(?<![A-Za-z0-9])"
_FORMS = re.compile(
    "|".join(
        (
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?s:.*?)-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|(?s:.*))",
            _START + r"(?:hf|api_org)_[A-Za-z0-9]{20,}",  # Hugging Face
            _START + r"wandb_v\d+_[A-Za-z0-9_]{20,}",  # Weights & Biases since 2025
            _START + r"local-[0-9a-f]{40}(?![A-Za-z0-9])",  # Weights & Biases on one's own server
            _START + r"sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}",  # OpenAI, Anthropic
            _START + r"sk_(?:live|test)_[A-Za-z0-9]{10,}",  # Stripe
            _START + r"gh[opsur]_[A-Za-z0-9]{20,}",  # GitHub
            _START + r"github_pat_[A-Za-z0-9_]{20,}",
            _START + r"glpat-[A-Za-z0-9_-]{16,}",  # GitLab
            _START + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
            _START + r"AIza[A-Za-z0-9_-]{35}",  # Google
            _START + r"ya29\.[A-Za-z0-9_-]{20,}",
            _START + r"xox[a-z]-[A-Za-z0-9-]{10,}",  # Slack
            _START + r"xapp-[A-Za-z0-9-]{10,}",
            _START + r"pypi-[A-Za-z0-9_-]{32,}",
            _START + r"npm_[A-Za-z0-9]{32,}",
            _START + r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # JWT
        )
    )
)
_OPENINGS = (
    *("-----BEGIN ", "hf_", "api_org_", "wandb_v", "local-", "sk-", "sk_", "glpat-", "pypi-"),
    *("ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "AKIA", "ASIA", "AIza", "npm_"),
    *("ya29.", "xox", "xapp-", "eyJ"),
)
"""What one of the forms begins with: a text that holds none has no credential, and is read much faster."""
_IN_CONTEXT = (
    # scheme://user:password@host up to the last @, since a password may have one (what begins as a port is
    # none), and a long user name alone (a token) over http; ssh://git@ survives. A path has one slash of two.
    re.compile(
        r"(?P<keep>\b[a-zA-Z][a-zA-Z0-9+.-]{0,20}:/{1,3})\s*[^\s/@:'\"]*:"
        r"(?!\d{1,5}/)[^\s'\"]{1,300}(?=\s*@)"
    ),
    re.compile(r"(?P<keep>\bhttps?:/{1,3})[^\s/@:'\"]{16,}(?=@)"),
    re.compile(r"(?i)(?P<keep>[?&](?:sig|signature|x-amz-[a-z-]+|x-goog-[a-z-]+)=)[^\s&#'\"]+"),
    re.compile(r"(?i)(?P<keep>\bauthorization['\"]?\s*[:=]\s*['\"]?)(?:[a-z]+ +)?[^\s'\",;]+"),
    re.compile(r"(?i)(?P<keep>\bbearer\s+)(?=[^\s'\"]*\d|[^\s'\"]{20})[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?P<keep>\bmachine\s+\S+\s+login\s+\S+\s+password\s+)\S+"),  # netrc
    re.compile(r"(?P<keep>\bwandb\s+login\s+(?:--\S+\s+)*)[A-Za-z0-9_-]{32,}"),
)

# What stands in front of a value in `name=value`, `name: value`, `"name": "value"`, `--name value`.
_PAIR_NAME = re.compile(
    r"(?P<option>--?)?(?<![A-Za-z0-9])(?P<name>[A-Za-z][A-Za-z0-9_.-]{0,80})['\"]?"
    r"(?:\s{0,4}[:=]{1,2}\s{0,4}|(?(option)[ ]{1,4}|(?!)))"
)
_PAIR_VALUE = re.compile(
    r"(?P<quote>['\"])(?P<quoted>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)"
    r"|(?P<bare>(?:\[redacted\]|[^\s'\",;&)\]}])+)"
)
_CREDENTIAL_LIKE = re.compile(r"(?!\d+\.\d)(?=[^\d]*\d|.{16})[A-Za-z0-9._~+/=-]{8,}")


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return `text` with every secret replaced by `[redacted]`.

    `environ` gives the variables whose values are secret by name; without it, this process's own.
    """
    for value in _environment_secrets(os.environ if environ is None else environ):
        text = text.replace(value, REDACTED)
    if _may_have_form(text):
        text = _FORMS.sub(REDACTED, text)
    for pattern in _IN_CONTEXT:
        text = pattern.sub(lambda match: match["keep"] + REDACTED, text)
    return _redact_pairs(text)


MAX_WORD, MAX_LINE = 400, 4000
"""Characters of a word and of a line that a message shows; what is longer keeps its two ends."""
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD},}}")


def printable(text: str) -> str:
    """Return `text` with its control characters spelled out, as a terminal may be given it."""
    return "".join(map(_printable, text))


def message(text: str) -> str:
    """Return `text` as a person may see it: no secret, no control character, long values cut."""
    text = printable(redact(text))
    text = _LONG_WORD.sub(lambda found: _cut(found[0], MAX_WORD), text)
    return "\n".join(_cut(line, MAX_LINE) for line in text.split("\n"))


def _printable(character: str) -> str:
    """Write out what a terminal would obey or hide: control and direction marks, halves, unassigned ones."""
    if character.isprintable() or character == "\n":
        return character
    return character.encode("unicode_escape").decode()


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    begin, end = 3 * limit // 4, limit // 8
    return f"{text[:begin]}…({len(text) - begin - end:,} characters)…{text[-end:]}"


def looks_like_a_key(text: str, environ: Mapping[str, str] | None = None) -> bool:
    """Whether a text holds what is a credential by its form, or the value of a secret variable."""
    values = _environment_secrets(os.environ if environ is None else environ)
    if any(value in text for value in values):
        return True
    return _may_have_form(text) and _FORMS.search(text) is not None


def _may_have_form(text: str) -> bool:
    return any(opening in text for opening in _OPENINGS)


def redact_tree(tree: Any, environ: Mapping[str, str] | None = None) -> Any:
    """Return a copy of a tree of mappings, lists and scalars without its secrets.

    Under a key whose name is that of a secret every string goes, whatever it looks like; every other
    string is treated as `redact` treats text. Keys, numbers, booleans and None stay.
    """
    match tree:
        case str():
            return redact(tree, environ)
        case Mapping():
            return {
                key: _blank(value) if is_secret_name(str(key)) else redact_tree(value, environ)
                for key, value in tree.items()
            }
        case list() | tuple():
            return [redact_tree(value, environ) for value in tree]
        case _:
            return tree


def is_secret_name(name: str) -> bool:
    """Whether a key or option of this name holds a secret: `api_key`, `hf_token`, `clientSecret`."""
    words = _words(name)
    if not words or words[-1] in _LOCATION_WORDS:
        return False
    if _SECRET_WORDS.intersection(words) or words[-1].endswith(_SECRET_ENDS):
        return True
    owner = words[-2] if len(words) > 1 else ""
    match words[-1]:
        case "token" | "pwd" | "auth":
            return owner not in _TOKENIZER_WORDS
        case "key" | "keys":
            return owner in _KEY_OWNERS or (owner != "" and name.isupper())
        case _:
            return False


def _words(name: str) -> list[str]:
    return _WORD.findall(_HUMP.sub("_", name).lower())


def _environment_secrets(environ: Mapping[str, str]) -> Iterable[str]:
    """Return the secret values of `environ`, plain and percent-encoded, the longest first."""
    values = {
        value
        for name, value in environ.items()
        if _is_secret_variable(name) and not _is_trivial(value)
    }
    return sorted(values | {quote(value, safe="") for value in values}, key=len, reverse=True)


@lru_cache(maxsize=1024)  # asked for every text of every record
def _is_secret_variable(name: str) -> bool:
    words = _words(name)
    if not words or words[-1] in _LOCATION_WORDS or name in ("PWD", "OLDPWD"):
        return False
    return bool(_ENVIRONMENT_WORDS.intersection(words)) or words[-1].endswith(_SECRET_ENDS)


def _is_trivial(value: str) -> bool:
    """Whether a value is too common to be taken out of text: short, or a plain number."""
    if len(value) < _MIN_ENVIRONMENT_SECRET:
        return True
    return len(value) < 2 * _MIN_ENVIRONMENT_SECRET and value.replace(".", "", 1).isdigit()


def _redact_pairs(text: str) -> str:
    """Replace the values that follow secret names; an innocent `error: ` does not hide `token=…`."""
    pieces, done = [], 0
    for before in _PAIR_NAME.finditer(text):
        if before.start() < done or not is_secret_name(before["name"]):
            continue
        value = _PAIR_VALUE.match(text, before.end())
        if value is None or not _is_secret_value(before["name"], value["quoted"] or value["bare"]):
            continue
        quote_mark = value["quote"] or ""
        pieces += [text[done : value.start()], quote_mark, REDACTED, quote_mark]
        done = value.end()
    return "".join([*pieces, text[done:]])


def _is_secret_value(name: str, value: str | None) -> bool:
    """Judge what follows a secret's name in prose: `token: expected` is harmless, `token: a81f…` not."""
    if value is None or value.lower() in _NOT_SECRET_VALUES:
        return False
    if _words(name) in (["token"], ["auth"], ["pwd"]):
        return _CREDENTIAL_LIKE.fullmatch(value) is not None
    return True


def _blank(value: Any) -> Any:
    """Return a secret's value with its shape kept: strings go, numbers, booleans and None stay."""
    match value:
        case str():
            return value if value.lower() in _NOT_SECRET_VALUES else REDACTED
        case Mapping():
            return {key: _blank(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_blank(inner) for inner in value]
        case _:
            return value
