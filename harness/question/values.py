"""How a value is spelled in a point: the text that Hydra's override grammar takes, one text per value."""

from types import NoneType
from typing import TYPE_CHECKING, Any

from harness.config.overrides import read_override
from harness.errors import RequestError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def spelled(value: Any) -> str:
    """Return the text of a value of YAML or of Hydra's grammar: `nf4`, `0.001`, `true`, `null`, `[1,2]`.

    Text that stands in quotes keeps them only where it would read as something else without them.
    """
    from hydra.core.override_parser.types import (
        Override,
        OverrideType,
        Quote,
        QuotedString,
        ValueType,
    )

    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, QuotedString) and _reads_as(value.text, value.text):
        return value.text
    if isinstance(value, str) and _needs_quotes(value):
        value = QuotedString(text=value, quote=Quote.single)
    _refuse_other_types(value)
    return Override(
        type=OverrideType.CHANGE, key_or_group="", value_type=ValueType.ELEMENT, _value=value
    ).get_value_element_as_str()


def _refuse_other_types(value: Any) -> None:
    """Refuse what YAML can say and a configuration cannot hold: dates, sets, bytes."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, dict):
        for each in value.values():
            _refuse_other_types(each)
    elif isinstance(value, list):
        for each in value:
            _refuse_other_types(each)
    elif not isinstance(value, (str, int, float, QuotedString, NoneType)):
        raise RequestError(
            f"{str(value)[:80]} is a {type(value).__name__}, which no configuration holds; quote a text"
        )


def _needs_quotes(text: str) -> bool:
    """Whether a text cannot be read without quotes; `8`, which reads as a number, can."""
    try:
        from_text(text)
    except RequestError:
        return True
    return text != text.strip() or not text


def from_text(text: str) -> Any:
    """Return the value of a text in Hydra's grammar. Raises RequestError where it is none or several."""
    override = _parse(text)
    if override.is_sweep_override():
        raise RequestError(f"{text!r} gives several values where one is meant; a list is [a,b]")
    return override.value()


def normalized(value: Any) -> str:
    """Return how a scalar or list of a YAML file is spelled; a text in it is read in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(normalized, value))}]"
    return spelled(_element(value) if isinstance(value, str) else value)


def _element(text: str) -> Any:
    override = _parse(text)
    if override.is_sweep_override():
        raise RequestError(f"{text!r} gives several values where one is meant; a list is [a,b]")
    return override._value  # with its quotes, which `value()` takes off


def _parse(text: str) -> "Override":
    from hydra.errors import HydraException

    try:
        return read_override(f"value={text}")
    except HydraException as error:
        raise RequestError(f"{text!r} cannot be read: {reason_of(error)}") from error


def _reads_as(text: str, wanted: str) -> bool:
    try:
        value = from_text(text)
    except RequestError:
        return False
    return isinstance(value, str) and value == wanted


def reason_of(error: Exception) -> str:
    """Return what Hydra's parser has to say, on one line, without its pointers to web pages."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("See https", "^"))]
    return "; ".join(kept[:2])
