"""How many runs fit: the binary search against trying every number, and what is said of it."""

from dataclasses import dataclass, replace
from typing import ClassVar, cast

from hypothesis import given
from hypothesis import strategies as st

from harness.config.schema import (
    LoraConfig,
    LoraMethod,
    OptimConfig,
    QuantConfig,
    QuantFormat,
    RunConfig,
)
from harness.plan.fit import fit_text, fits, largest_cohort
from harness.plan.prediction import BatchSize, Prediction
from harness.plan.subject import Subject
from tests.plan.engine import Bases
from tests.plan.test_text import made


@dataclass
class Growing:
    """What peaks at so many bytes, and so many more for every run."""

    base: int
    each: int
    config: ClassVar[RunConfig] = RunConfig()

    def predict(self, cohort: int = 1) -> Prediction:
        return replace(made("cpu"), peak_bytes=self.base + self.each * cohort)


@given(
    base=st.integers(0, 1000),
    each=st.integers(1, 100),
    limit=st.integers(1, 3000),
    most=st.integers(1, 70),
)
def test_the_largest_cohort_is_that_of_trying_all(
    base: int, each: int, limit: int, most: int
) -> None:
    fitting = [n for n in range(1, most + 1) if (base + each * n) * 1.05 <= limit]
    found = largest_cohort(cast(Subject, Growing(base, each)), limit, most)
    assert found == max(fitting, default=0)


def test_a_peak_fits_with_five_hundredths_more() -> None:
    prediction = replace(made("cpu"), peak_bytes=1000)
    assert fits(prediction, 1050)
    assert not fits(prediction, 1049)


def test_what_fits_is_said_with_its_cohort_or_what_it_needs() -> None:
    subject, kib = cast(Subject, Growing(2000 * 1024, 1000 * 1024)), 1024
    alone = subject.predict()
    assert fit_text(subject, alone, 3149 * kib) == (
        "does not fit 3.08 MiB: 3.08 MiB with its margin"
    )
    assert fit_text(subject, alone, 5250 * kib).endswith("; side by side up to 3 such runs do")
    plenty = fit_text(subject, alone, 66_000 * kib * 105 // 100)
    assert plenty.endswith("; side by side up to 64 such runs do (more were not tried)")
    less = fit_text(subject, alone, 65_999 * kib * 105 // 100)
    assert less.endswith("; side by side up to 63 such runs do")


def test_a_run_that_trains_the_model_itself_fits_alone_or_not_at_all(bases: Bases) -> None:
    quant, lora = QuantConfig(format=QuantFormat.none), LoraConfig(method=LoraMethod.none)
    config = RunConfig(quant=quant, lora=lora, optim=OptimConfig(steps=1))
    batch = BatchSize(rows=1, length=8, loss_tokens=4)
    subject = Subject(bases.planned("uneven"), config, batch, "cpu", "stated", None)
    prediction = subject.predict()
    needed = prediction.peak_bytes * 1.05
    assert largest_cohort(subject, round(needed * 1000)) == 1
    assert largest_cohort(subject, round(needed) - 1) == 0
    assert "it trains alone, on its own copy" in fit_text(subject, prediction, round(needed) + 1)
