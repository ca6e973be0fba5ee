"""What a sweep shows on a terminal of 80 columns."""

import pytest
from rich.console import Console

from harness.sweeping.display import confirmation_table, leaderboard
from harness.sweeping.state import ConfirmedLine, SweepState, TrialLine

SIX = {
    "lora.rank": ("2", "128"),
    "optim.lr": ("0.0001234", "0.00123"),
    "lora.alpha_over_rank": ("16", "0.25"),
    "quant.format": ("nf4", "int4_asym"),
    "optim.schedule": ("constant", "cosine"),
    "lora.dropout": ("0.05", "0.1"),
}


def leaders(axes: dict[str, tuple[str, ...]], *, confirmed: bool = False) -> list[str]:
    """Return the lines of the leaders, or of the confirmed, of a sweep with these axes, in 80 columns."""
    state = SweepState(
        name="wide",
        question="?",
        expect="",
        method="grid",
        objectives={"eval/loss": "minimize"},
        trials_requested=2,
    )
    state.trials = [
        TrialLine(
            number=1000 + number,
            point={key: values[number] for key, values in axes.items()},
            status="completed",
            values=[1.25 + number],
            feasible=True,
            runs=[],
            reason=None,
        )
        for number in range(2)
    ]
    state.confirmed = [
        ConfirmedLine(
            point=trial.point,
            trial=trial.number,
            runs=["a", "b"],
            values={"eval/loss": [0.25 + number, 2.25 + number]},
        )
        for number, trial in enumerate(state.trials)
    ]
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(confirmation_table(state) if confirmed else leaderboard(state))
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]


def test_six_axes_stand_on_one_line_each():
    lines = leaders(SIX)
    assert max(map(len, lines)) <= 80
    *headings, _, first, second = lines
    assert first.split() == ["1000", *(values[0] for values in SIX.values()), "1.2500"]
    assert second.split() == ["1001", *(values[1] for values in SIX.values()), "2.2500"]
    assert headings[-1].split()[:3] == ["trial", "rank", "lr"]
    assert not any("lora." in line or "optim." in line for line in headings)


def test_six_confirmed_axes_do_too():
    lines = leaders(SIX, confirmed=True)
    assert max(map(len, lines)) <= 80
    interval = "1.2500 ± 12.7062"  # of two seeds that are 2 apart: t(0.975, 1) . sqrt(2) / sqrt(2)
    cells = [values[0] for values in SIX.values()]
    assert lines[-2].split() == ["1000", *cells, "2/2", *interval.split()]


def test_names_that_end_alike_are_told_apart():
    *headings, _, first, _second = leaders(
        {
            "eval.batch_size": ("1", "2"),
            "optim.batch_size": ("8", "9"),
            "model": ("/m/meta-llama/Llama-3.2-1B", "/m/HuggingFaceTB/SmolLM2-135M"),
            "data.path": ("/a/rows.jsonl", "/b/rows.jsonl"),
        }
    )
    assert first.split() == ["1000", "1", "8", "Llama-3.2-1B", "a/rows.jsonl", "1.2500"]
    whole = " ".join(" ".join(headings).split())
    assert "eval." in whole
    assert "optim." in whole


@pytest.mark.parametrize("value", ["'a, b'", "—", "/"])
def test_odd_values_are_shown_as_they_are(value: str):
    lines = leaders({"data.system": (value, "other")})
    assert value.strip("'") in lines[-2]
