"""Figures: pure functions from rows to a matplotlib figure, or to the reason why there is none."""
