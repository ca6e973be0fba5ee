"""What is said of an error."""

import pytest

from harness.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a b\nc"), "a b"),
        (ValueError("\n  a b\nc"), "a b"),
        (NotImplementedError(), "NotImplementedError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_an_error_says_its_first_line_or_else_what_it_is(error: Exception, said: str) -> None:
    assert first_line(error) == said
