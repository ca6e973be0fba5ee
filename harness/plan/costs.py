"""Which configurations cost the same, what predictions say of them, and how long their runs take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.config.schema import RunConfig
from harness.data.order import steps_for
from harness.errors import RequestError
from harness.plan.prediction import Prediction
from harness.plan.probe import cost_key
from harness.plan.settings import PlanSettings
from harness.plan.subject import Subject, subject_of


@dataclass(slots=True, kw_only=True)
class CostGroup:
    """Configurations with equal memory and step time; they may differ in, say, seed or learning rate."""

    configs: list[RunConfig]
    points: list[dict[str, str]]
    """Axis -> value, as the space has them; in the order of `configs`."""
    subject: Subject | None = None
    prediction: Prediction | None = None
    """Prediction for one run; None where the model refuses the configuration."""
    refusal: str | None = None
    cohort: int = 0
    """The most runs side by side that fit; 0 if not even one does, or none was asked for."""
    step_seconds: float | None = None
    measured: dict[str, float | None] = field(default_factory=dict)
    """Metrics of a probe or of a run alone, if there is one."""

    def values(self, key: str) -> tuple[str | None, ...]:
        """Return the different values of its points on an axis, in their order; None where it has none."""
        return tuple(dict.fromkeys(point.get(key) for point in self.points))

    @property
    def steps(self) -> int | None:
        """Optimizer steps of one run; None where they depend on rows that are not at hand."""
        optim = self.configs[0].optim
        if optim.steps is not None:
            return optim.steps
        if self.subject is None or self.subject.num_rows is None or optim.epochs is None:
            return None
        return steps_for(optim.epochs, self.subject.num_rows, optim.batch_size)

    @property
    def run_seconds(self) -> float | None:
        """Seconds of one run's training steps, alone."""
        if self.steps is None or self.step_seconds is None:
            return None
        return self.steps * self.step_seconds


def cost_groups(
    cells: Iterable[tuple[dict[str, str], RunConfig]], settings: PlanSettings
) -> list[CostGroup]:
    """Return the cells by what they cost, each group with its prediction."""
    groups: dict[str, CostGroup] = {}
    for point, config in cells:
        group = groups.setdefault(cost_key(config), CostGroup(configs=[], points=[]))
        group.configs.append(config)
        group.points.append(point)
    for group in groups.values():
        try:
            group.subject = subject_of(group.configs[0], settings)
            group.prediction = group.subject.predict()
        except RequestError as error:
            group.refusal = str(error)
        group.step_seconds = stated_step_seconds(group, settings)
    return list(groups.values())


def stated_step_seconds(group: CostGroup, settings: PlanSettings) -> float | None:
    """Return seconds of a step at `plan.tokens_per_second`, by the positions that it has at most."""
    if settings.tokens_per_second is None or group.subject is None:
        return None
    optim, batch = group.configs[0].optim, group.subject.batch
    micro = optim.micro_batch_size or optim.batch_size
    return optim.batch_size // micro * batch.rows * batch.length / settings.tokens_per_second


def distinguishing_keys(groups: Sequence[CostGroup]) -> list[str]:
    """Return the axes that tell groups apart, in their order: those that are constant within each and differ
    between them; and where these leave groups alike, those of which no two such groups share a value."""
    keys = list(dict.fromkeys(key for group in groups for point in group.points for key in point))
    constant = [
        key
        for key in keys
        if all(len(group.values(key)) == 1 for group in groups)
        and len({group.values(key) for group in groups}) > 1
    ]
    alike: dict[tuple[object, ...], list[CostGroup]] = {}
    for group in groups:
        alike.setdefault(tuple(map(group.values, constant)), []).append(group)
    several = [same for same in alike.values() if len(same) > 1]

    def tells_apart(key: str) -> bool:
        return all(
            len({value for group in same for value in group.values(key)})
            == sum(len(group.values(key)) for group in same)
            for same in several
        )

    return [key for key in keys if key in constant or (several and tells_apart(key))]
