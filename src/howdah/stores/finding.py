"""Looking into a queue: jobs by id, run, fingerprint and status, counts, and answers already computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from zlib import crc32

from ..aggregates import count_
from ..criteria import And, Compare, Criteria, In, Null, Or, Prefix
from ..errors import InvalidInput
from ..pages import check_limit
from ..table import AsyncTable
from ..values import as_list, fingerprint as fingerprint_of
from .claim import ABORTED
from .job import PAUSED, Job, JobStatus, check_id, read_job


class Finding:
    """The reading half of a queue."""

    _name: str
    _scope: str
    _prefix: str
    _seed: int
    _table: AsyncTable[Any]

    def _mine(self, scope: Mapping[str, Any] | None = None) -> Criteria:
        """Criteria of a scope: this queue's own, with ``{}`` every one of the store's, with some columns those that have them."""
        if scope is None:
            return Compare("scope", "=", self._scope)
        if not isinstance(scope, Mapping):
            raise InvalidInput(f"scope={scope!r:.60}: expected a mapping of column names to values, or None")
        found = self._table._criteria(
            And(tuple(self._table.c.tags[k] == v for k, v in scope.items())) if scope else None
        )
        inside = (Prefix("scope", self._prefix),) if self._prefix else ()
        return And(inside if found is None else (*inside, found))

    def _is_mine(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this queue's scope."""
        return bool(row["scope"] == self._scope)

    def _active(self, mark: str) -> tuple[Criteria, ...]:
        """Criteria of the jobs of a fingerprint that wait and that run, each by an index of those that do. Looking in this
        order finds one that begins meanwhile, or is given back."""
        same = self._alike(mark)
        waits, runs = (And((*same, Null(n, negated=True))) for n in ("due_at", "lease_expires_at"))
        return waits, runs, waits

    def _hashed(self, mark: str) -> int:
        """What a fingerprint is in indexes, which say so of a job's scope, too."""
        return crc32(mark.encode(), self._seed)

    def _alike(self, mark: str) -> tuple[Criteria, ...]:
        """Criteria of the jobs of a fingerprint."""
        hashed = Compare("fingerprint_hash", "=", self._hashed(mark))
        return self._mine(), hashed, Compare("fingerprint", "=", mark)

    def _job(self, row: Mapping[str, Any]) -> Job:
        return read_job(self._name, row)

    async def get(self, id: str) -> Job | None:
        """The job, or ``None``. Never waits for a worker that is changing it."""
        return (await self.get_many([id])).get(id)

    async def get_many(self, ids: Iterable[str]) -> dict[str, Job]:
        """The jobs found, by id, in the order asked."""
        rows = await self._table.get_many(as_list(ids, "get_many"))
        return {k: self._job(r) for k, r in rows.items() if self._is_mine(r) and r["status"] != PAUSED}

    async def by_run(self, run_id: str) -> list[Job]:
        """The jobs of a run, in the order they were added."""
        alone = And((Compare("id", "=", check_id(run_id)), Null("run_id")))
        where = And((self._mine(), Or((Compare("run_id", "=", run_id), alone))))
        return [self._job(r) for r in await self._table.query(where).all()]

    async def find_active(self, fingerprint: str) -> Job | None:
        """A job of this fingerprint that waits or runs."""
        for where in self._active(check_id(fingerprint)):
            row = await self._table.query(where).first()
            if row is not None:
                return self._job(row)
        return None

    async def peek(
        self,
        status: JobStatus | str = JobStatus.PENDING,
        *,
        limit: int | None = 100,
        scope: Mapping[str, Any] | None = None,
    ) -> list[Job]:
        """Jobs of a status, those that may start first in front. ``scope={}`` shows every tenant's."""
        where = And((self._mine(scope), self._status(status)))
        query = self._table.query(where, order_by=["visible_at", "id"], limit=check_limit(limit))
        return [self._job(r) for r in await query.all()]

    async def count(
        self, status: JobStatus | str = JobStatus.PENDING, *, scope: Mapping[str, Any] | None = None
    ) -> int:
        """How many jobs have a status."""
        return await self._table.count(And((self._mine(scope), self._status(status))))

    async def counts(self, *, scope: Mapping[str, Any] | None = None) -> dict[JobStatus, int]:
        """How many jobs there are of each status, all of them named."""
        where = And((self._mine(scope), In("status", tuple(s.value for s in JobStatus))))
        found = {r["status"]: r["n"] for r in await self._table.aggregate(where, by="status", n=count_())}
        return {s: found.get(s.value, 0) for s in JobStatus}

    def _status(self, status: JobStatus | str) -> Criteria:
        """Criteria of a status by the index that holds it."""
        try:
            wanted = JobStatus(status)
        except ValueError:
            raise InvalidInput(f"status={status!r}: expected one of {', '.join(JobStatus)}") from None
        same = Compare("status", "=", wanted.value)
        present = {JobStatus.PENDING: "due_at", JobStatus.PROCESSING: "lease_expires_at"}.get(wanted, "completed_at")
        return And((same, Null(present, negated=True)))

    async def completed_for(self, input: Any) -> Job | None:
        """The newest completed job with the fingerprint of this input."""
        done = (Null("completed_at", negated=True), Compare("status", "=", JobStatus.COMPLETED.value))
        where = And((*self._alike(fingerprint_of(input)), *done))
        row = await self._table.query(where, order_by=["-completed_at", "-id"]).first()
        return None if row is None else self._job(row)

    async def output_for(self, input: Any) -> Any:
        """The output already computed for this input, else ``None``; ``completed_for`` tells a ``None`` apart."""
        job = await self.completed_for(input)
        return None if job is None else job.output

    async def dead_letters(self, *, limit: int | None = 100) -> list[Job]:
        """Jobs that failed and were not aborted, the latest first."""
        where = And((self._mine(), self._status(JobStatus.FAILED), Compare("error_code", "!=", ABORTED)))
        query = self._table.query(where, order_by=["-completed_at", "-id"], limit=check_limit(limit))
        return [self._job(r) for r in await query.all()]
