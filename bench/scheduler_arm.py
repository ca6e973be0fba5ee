"""One simulated sweep: what it was, what came out, and its line of the table."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated."""

    method: str
    stretch: float
    devices: int
    cohort: int
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Of all devices' or slots' time, over the whole arm and over its middle (None: it has none)."""

    whole: float
    middle: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One simulated sweep. Seconds are the simulated clock's unless their name says otherwise."""

    case: Case
    told: int
    pruned: int
    finished: bool
    """Whether all trials were told, or the arm was cut."""
    seconds: float
    """From the start of the workers to the last result."""
    devices_busy: Shares
    """In which devices loaded, trained, evaluated or wrote."""
    slots_busy: Shares
    """In which a slot had a run."""
    driver_load: float
    """Share of the time in which the driver worked."""
    driver_seconds: float
    """Of its work."""
    messages_per_second: float
    """From workers to the driver."""
    delay_seconds: float | None
    """How long a message lay in its pipe until the driver took it: the median,"""
    late_delay_seconds: float | None
    """and what one in twenty exceeded."""
    processor_seconds: float
    """Of driver and simulation."""


HEADING = (
    "devices trials         time s  devices busy   slots busy   driver   messages   delay ms\n"
    "                               all   middle   all  middle    load         /s  median    95 %"
)


def line(arm: Arm) -> str:
    """Return one line of the table."""
    told = f"{arm.told}/{arm.case.trials}" + ("" if arm.finished else " cut")
    return (
        f"{arm.case.devices:7} {told:14} {arm.seconds:6.0f} {_percent(arm.devices_busy)} "
        f"{_percent(arm.slots_busy)} {100 * arm.driver_load:6.1f}% {arm.messages_per_second:10.1f} "
        f"{_milliseconds(arm.delay_seconds)} {_milliseconds(arm.late_delay_seconds)}"
    )


def _milliseconds(seconds: float | None) -> str:
    return "      —" if seconds is None else f"{1000 * seconds:7.1f}"


def _percent(shares: Shares) -> str:
    middle = "    —" if shares.middle is None else f"{100 * shares.middle:5.1f}"
    return f"{100 * shares.whole:6.1f} {middle}"
