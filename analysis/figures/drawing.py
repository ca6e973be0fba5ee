"""What a figure's function gives back: a drawing, or the reason why the rows do not support it."""

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure and what has to be said about it."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    """Description of what is drawn, over how many seeds, and how it was chosen; no findings."""
    figure: Figure | None
    """The drawn figure; The drawn figure; The drawn figure; None where the rows do not support it."""
    reason: str | None = None
    """Why there is no figure."""
    is_wide: bool = False
    """Whether a page shows it over its full width."""
    run_ids: tuple[str, ...] = ()
    """The runs behind it."""


def not_drawn(name: str, title: str, reason: str) -> Drawing:
    """Return the answer of a function whose rows do not support its figure."""
    return Drawing(name=name, title=title, caption="", figure=None, reason=reason)


def sentences(*parts: str) -> str:
    """Join the sentences of a caption, leaving out the empty ones."""
    return " ".join(part for part in parts if part)
