"""Who of several members trains what: leases in the study's database, timed by its server's clock.

A member renews what it holds at every heartbeat. What is not renewed for `LEASE_HEARTBEATS` of them is free
again, and whoever had it can no longer end it: every end is checked against the lease in one transaction.
"""

import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

import sqlalchemy as sql
from sqlalchemy.dialects.postgresql import insert

LEASE_HEARTBEATS = 1.5
"""Heartbeats without a renewal after which a lease is over; looked for four times in each."""
TURN_SECONDS = 60.0
"""A member that stops with the turn in its hand loses it after so long, or after a heartbeat if that is
shorter, before the others lose their leases: the server ends its transaction."""

_tables = sql.MetaData()
_LEASES = sql.Table(
    "harness_leases",
    _tables,
    sql.Column("study", sql.Text, primary_key=True),
    sql.Column("item", sql.Text, primary_key=True),
    sql.Column("member", sql.Text, nullable=False),
    sql.Column("state", sql.Text, nullable=False),
    sql.Column("renewed_at", sql.DateTime(timezone=True), nullable=False),
)
_MEMBERS = sql.Table(
    "harness_members",
    _tables,
    sql.Column("study", sql.Text, primary_key=True),
    sql.Column("member", sql.Text, primary_key=True),
    sql.Column("began_at", sql.DateTime(timezone=True), nullable=False),
    sql.Column("renewed_at", sql.DateTime(timezone=True), nullable=False),
    sql.Column("devices", sql.JSON, nullable=False),
)


class LeaseState(Enum):
    """Where an item stands."""

    held = "held"
    free = "free"
    done = "done"


@dataclass(frozen=True, slots=True)
class Lease:
    """What the database says of one item."""

    member: str
    """Member that holds the lease, or held it last."""
    state: LeaseState


def lock_of(name: str) -> sql.ColumnElement[None]:
    """Return the call that waits for a lock of the database and holds it until the transaction ends."""
    return sql.func.pg_advisory_xact_lock(sql.func.hashtextextended(name, 0))


def member_name() -> str:
    """Return a name for this process that nobody else has, and that says where it runs."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def host_of(member: str) -> str:
    """Return the machine of a member."""
    return member.rpartition("-")[0]


class Leases:
    """The leases of one member on the items (trials, confirmation runs) of one study."""

    def __init__(
        self, engine: sql.Engine, study: str, heartbeat_seconds: float, member: str | None = None
    ) -> None:
        self.member = member or member_name()
        self.heartbeat_seconds = heartbeat_seconds
        self._engine = engine
        self._turn: sql.Connection | None = None
        self._study = study
        self._over = timedelta(seconds=LEASE_HEARTBEATS * heartbeat_seconds)

    def join(self) -> None:
        """Make the tables where there are none, and this member known; call it inside `turn`."""
        with self._engine.begin() as connection:
            connection.execute(sql.select(lock_of("harness tables")))
            _tables.create_all(connection)
            connection.execute(
                insert(_MEMBERS)
                .values(
                    study=self._study,
                    member=self.member,
                    began_at=sql.func.clock_timestamp(),
                    renewed_at=sql.func.clock_timestamp(),
                    devices=[],
                )
                .on_conflict_do_nothing()
            )

    def forget(self) -> None:
        """Drop what is left of an earlier study of this name; inside `turn`, of a study without trials."""
        with self._engine.begin() as connection:
            connection.execute(sql.delete(_LEASES).where(_LEASES.c.study == self._study))

    @property
    def has_turn(self) -> bool:
        """Whether this member is in its turn."""
        return self._turn is not None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep every other member of the study out, until the outermost block ends or this process does."""
        if self.has_turn:
            yield
            return
        with self._engine.begin() as connection:
            limit = round(1000 * min(TURN_SECONDS, self.heartbeat_seconds))
            connection.execute(sql.text(f"SET LOCAL idle_in_transaction_session_timeout = {limit}"))
            connection.execute(sql.select(lock_of(f"harness sweep {self._study}")))
            self._turn = connection
            try:
                yield
            finally:
                self._turn = None

    def check_turn(self) -> None:
        """Make sure that the turn is still ours; raises SQLAlchemy's error where the server has ended it."""
        assert self._turn is not None, "not in turn"
        self._turn.execute(sql.select(1))

    # Holding -------------------------------------------------------------------------------------

    def renew(self, devices: list[dict]) -> set[str]:
        """Say that this member lives, and what its devices do; returns the items that it still holds."""
        with self._engine.begin() as connection:
            connection.execute(
                sql.update(_MEMBERS)
                .where(_MEMBERS.c.study == self._study, _MEMBERS.c.member == self.member)
                .values(renewed_at=sql.func.clock_timestamp(), devices=devices)
            )
            kept = connection.execute(
                sql.update(_LEASES)
                .where(*self._mine())
                .values(renewed_at=sql.func.clock_timestamp())
                .returning(_LEASES.c.item)
            )
            return {item for (item,) in kept}

    def take(self, item: str) -> bool:
        """Take an item that is new or free; returns whether this member holds it now."""
        values = {
            "member": self.member,
            "state": LeaseState.held.value,
            "renewed_at": sql.func.clock_timestamp(),
        }
        query = insert(_LEASES).values(study=self._study, item=item, **values)
        query = query.on_conflict_do_update(
            index_elements=["study", "item"],
            set_=values,
            where=sql.or_(
                _LEASES.c.state == LeaseState.free.value,
                sql.and_(_LEASES.c.state == LeaseState.held.value, _LEASES.c.member == self.member),
            ),
        ).returning(_LEASES.c.item)
        with self._engine.begin() as connection:
            return connection.execute(query).first() is not None

    @contextmanager
    def ending(self, item: str, state: LeaseState = LeaseState.done) -> Iterator[bool]:
        """Say whether this member holds the item, let nobody take it inside, and give it up as `state`."""
        with self._engine.begin() as connection:
            held = connection.execute(
                sql.select(_LEASES.c.item)
                .where(*self._mine(), _LEASES.c.item == item)
                .with_for_update()
            ).first()
            yield held is not None
            if held is not None:
                connection.execute(
                    sql.update(_LEASES)
                    .where(*self._mine(), _LEASES.c.item == item)
                    .values(state=state.value)
                )

    def give_back(self) -> None:
        """Free everything that this member holds: it leaves."""
        with self._engine.begin() as connection:
            connection.execute(
                sql.update(_LEASES).where(*self._mine()).values(state=LeaseState.free.value)
            )
            connection.execute(
                sql.delete(_MEMBERS).where(
                    _MEMBERS.c.study == self._study, _MEMBERS.c.member == self.member
                )
            )

    # What others do ------------------------------------------------------------------------------

    def free_what_is_over(self) -> list[tuple[str, str]]:
        """Free what its holders have not renewed; returns each item and its late holder."""
        over = sql.func.clock_timestamp() - self._over
        with self._engine.begin() as connection:
            freed = connection.execute(
                sql.update(_LEASES)
                .where(
                    _LEASES.c.study == self._study,
                    _LEASES.c.state == LeaseState.held.value,
                    _LEASES.c.renewed_at < over,
                )
                .values(state=LeaseState.free.value)
                .returning(_LEASES.c.item, _LEASES.c.member)
            )
            return [(item, member) for item, member in freed]

    def all(self) -> dict[str, Lease]:
        """Return every item that anybody has ever taken."""
        query = sql.select(_LEASES.c.item, _LEASES.c.member, _LEASES.c.state).where(
            _LEASES.c.study == self._study
        )
        with self._engine.begin() as connection:
            return {
                item: Lease(member, LeaseState(state))
                for item, member, state in connection.execute(query)
            }

    def other_members(self) -> dict[str, list[dict]]:
        """Return the living members but this one, and what their devices do."""
        over = sql.func.clock_timestamp() - self._over
        query = sql.select(_MEMBERS.c.member, _MEMBERS.c.devices).where(
            _MEMBERS.c.study == self._study,
            _MEMBERS.c.member != self.member,
            _MEMBERS.c.renewed_at >= over,
        )
        with self._engine.begin() as connection:
            return dict(connection.execute(query.order_by(_MEMBERS.c.began_at)).tuples().all())

    def _mine(self) -> Iterable[sql.ColumnElement[bool]]:
        return (
            _LEASES.c.study == self._study,
            _LEASES.c.member == self.member,
            _LEASES.c.state == LeaseState.held.value,
        )
