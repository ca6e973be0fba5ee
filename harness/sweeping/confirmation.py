"""Which cells of a search are confirmed: the best, each once. Pure."""

from harness.study.study import Study, Trial


def chosen_for_confirmation(study: Study, count: int) -> list[Trial]:
    """Return the first trial of each of the `count` best cells, best first."""
    chosen: dict[str, Trial] = {}
    for trial in study.best(len(study.trials)):
        if len(chosen) == count:
            break
        chosen.setdefault(str(trial.notes.get("cell")), trial)
    return list(chosen.values())
