"""Members of a sweep without workers, several in one process: the test trains."""

import sqlalchemy

from harness.config.compose import config_tree
from harness.question.question import Question
from harness.records.record import Estimate, Record, RunStatus, write_record
from harness.study.database import open_engine
from harness.study.leases import Leases
from harness.study.study import Study
from harness.sweeping.ledger import Run, RunState
from harness.sweeping.requests import RequestMaker
from harness.sweeping.tenancy import Leased
from harness.sweeping.trials import Trials

HEARTBEAT_SECONDS = 10.0


class Member:
    """One member without workers: the test trains."""

    def __init__(self, question: Question, name: str, url: str) -> None:
        self.said: list[str] = []
        leases = Leases(open_engine(url), question.name, HEARTBEAT_SECONDS, member=name)
        self.study = Study.open(question, url, eval_every_steps=2, total_steps=8, leases=leases)
        self.tenancy = Leased(leases, None, self.said.append)
        self.trials = Trials(question, self.study, RequestMaker(question), self.tenancy)

    def look(self) -> None:
        """Look at the others, again where there was more to take up than one turn allows."""
        self.tenancy.look_soon()
        while self.tenancy._look_at == 0.0:
            self.trials.keep_up([])

    def ask(self) -> None:
        while self.trials.has_more:
            self.trials.ask()

    def waiting(self) -> list[Run]:
        return list(self.trials.ledger.waiting())

    def claim(self) -> Run:
        """Claim what a worker would be given next."""
        for run in self.waiting():
            if self.trials.claim(run):
                run.state = RunState.assigned
                return run
        raise AssertionError("nothing waits")

    def end(self, run: Run, loss: float, *, on_disk: bool = False) -> None:
        record = Record(
            run_id=run.run_id, status=RunStatus.completed, config=config_tree(run.request.config)
        )
        record.evals["after"] = {"eval/loss": Estimate(value=loss, standard_error=0.1, n=8)}
        if on_disk:
            run.request.directory.path.mkdir(parents=True)
            write_record(run.request.directory.record, record)
        self.trials.ended(run, record)

    def fail(self, run: Run) -> None:
        """End a run as one that says nothing about its cell."""
        config = config_tree(run.request.config)
        self.trials.ended(
            run,
            Record(run_id=run.run_id, status=RunStatus.failed, config=config, error="disk full"),
        )

    def told(self) -> dict[int, float]:
        self.study.refresh()
        return {t.number: t.values[0] for t in self.study.trials if t.values is not None}


def age(url: str, member: str, heartbeats: float) -> None:
    """Let a member have given its last sign of life some heartbeats ago."""
    engine = open_engine(url)
    with engine.begin() as connection:
        for table in ("harness_leases", "harness_members"):
            connection.execute(
                sqlalchemy.text(
                    f"UPDATE {table} SET renewed_at = clock_timestamp() - make_interval(secs => :s) "
                    "WHERE member = :member"
                ),
                {"s": heartbeats * HEARTBEAT_SECONDS, "member": member},
            )
    engine.dispose()
