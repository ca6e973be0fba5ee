"""Ten changes that the tests once did not notice, each made as it was then."""

from dataclasses import dataclass

from tests.mutants.changes import ROOT


@dataclass(frozen=True, slots=True)
class Edit:
    """One text of a module in place of another."""

    operator: str
    """What is wrong afterwards."""
    module: str
    function: str
    """The qualified name of the function that holds the text."""
    before: str
    after: str

    @property
    def lines(self) -> tuple[int, ...]:
        """Those of the text."""
        first = (ROOT / self.module).read_text().partition(self.before)[0].count("\n") + 1
        return tuple(range(first, first + self.before.count("\n") + 1))

    def source(self, before: str) -> str:
        """Return the module's source with the change; the text must be there once."""
        count = before.count(self.before)
        if count != 1:
            raise SystemExit(f"{self.module} has {self.before!r} {count} times: mend the list")
        return before.replace(self.before, self.after)


EDITS = (
    Edit(
        "the schedule is four times as high",
        "harness/training/schedule.py",
        "learning_rate_factor",
        "return float(_of_step(Keyed(config), total_steps)(step))",
        "return 4.0 * float(_of_step(Keyed(config), total_steps)(step))",
    ),
    Edit(
        "tokens with loss are multiplied by the seconds",
        "harness/measure/throughput.py",
        "StepClock.metrics",
        "sum(self.loss_tokens[WARMUP_STEPS:]) / total",
        "sum(self.loss_tokens[WARMUP_STEPS:]) * total",
    ),
    Edit(
        "one step more is left out as warm-up",
        "harness/measure/throughput.py",
        "StepClock.metrics",
        "seconds = self.seconds[WARMUP_STEPS:]",
        "seconds = self.seconds[WARMUP_STEPS + 1 :]",
    ),
    Edit(
        "int8 is decoded with a scale that was rounded to bfloat16",
        "harness/base/storage.py",
        "RowwiseInt8.decode",
        "return (codes * scale).to(dtype)",
        "return (codes * scale.to(dtype)).to(dtype)",
    ),
    Edit(
        "a plan takes attention with a mask for attention without",
        "harness/plan/attention.py",
        "_attend",
        "attn_mask is not None, enable_gqa)",
        "attn_mask is None, enable_gqa)",
    ),
    Edit(
        "a plan gives flash attention what has a mask",
        "harness/plan/attention.py",
        "_on_cuda",
        "if half and not has_mask and head <= 256:",
        "if half and has_mask and head <= 256:",
    ),
    Edit(
        "a plan takes half precision for full",
        "harness/plan/attention.py",
        "_on_cuda",
        "half = dtype in (",
        "half = dtype not in (",
    ),
    Edit(
        "a plan forgets buffers",
        "harness/plan/outline.py",
        "module_outlines",
        "buffer_bytes=sum(",
        "buffer_bytes=0 * sum(",
    ),
    Edit(
        "adapters with different numbers of rows are stacked",
        "harness/engine/rows.py",
        "RowPlan._may_be_stacked",
        "one.stop - one.start == other.stop - other.start",
        "one.stop - one.start != other.stop - other.start",
    ),
    Edit(
        "rows of several copies are scored once",
        "harness/evals/token_loss.py",
        "_repeated",
        "if times == 1:",
        "if times != 1:",
    ),
)
