"""Which version of a base counts: asked, kept while a transaction runs, and replaced by the next."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import SerializationFailure, TierError, Unsupported
from ..session import Session
from . import commits
from .tiered import SHAPE, Snapshot, Tiered

LOCK = 1752


class Stale(Unsupported):
    """What was planned does not fit any more: the table was untiered, or its name means another one here."""


async def locked(session: Session, tiered: Tiered, names: Sequence[str] = (), *, repeatable: bool) -> Snapshot:
    """The base that counts until the transaction ends: a flush waits for it. To a transaction whose snapshot is older than the
    last flush the server says that it must be run again (40001)."""
    await session.command(f"SELECT pg_advisory_xact_lock_shared({LOCK}, {tiered.oid - 2**31})")
    return await current(session, tiered, names, " FOR SHARE" if repeatable else "")


async def current(
    session: Session, tiered: Tiered, names: Sequence[str] = (), lock: str = "", *, strict: bool = True
) -> Snapshot:
    """The base that this transaction's snapshot names, for a table that is still what was planned; if ``strict``, with the
    columns that it was tiered with."""
    rows = await session.query(
        f"SELECT metadata, generation, max_key, policy->>'archive_location' AS archive, shape, {SHAPE.format(rel='t.rel')} AS now,"
        " (SELECT coalesce(bool_and(to_regclass(x) = t.rel), true) FROM unnest($2::text[]) x) AS meant"
        f", pg_relation_filenode(rel) = (SELECT relfilenode FROM pg_class c WHERE c.oid = t.rel) AS same"
        f" FROM howdah.tiers t WHERE rel = $1::oid{lock}",
        (tiered.oid, list(names)),
        None,
    )
    if not rows or not rows[0]["meant"]:
        why = "is not tiered any more" if not rows else "is not what its name means here"
        raise Stale(f"{tiered.table} {why}: run the statement again")
    if not rows[0]["same"]:
        raise SerializationFailure(
            f"{tiered.table} was truncated or rewritten after this transaction began: run it again", sqlstate="40001"
        )
    if not strict:
        return Snapshot(rows[0]["metadata"], rows[0]["generation"], rows[0]["max_key"], rows[0]["archive"])
    if rows[0]["shape"] != tiered.shape:
        raise Stale(f"{tiered.table}: its columns were changed: run the statement again")
    if rows[0]["now"] != rows[0]["shape"]:
        raise TierError(
            f"{tiered.table}: its columns or unique indexes were changed after it was tiered: untier it, then tier it again"
        )
    return Snapshot(rows[0]["metadata"], rows[0]["generation"], rows[0]["max_key"], rows[0]["archive"])


async def named(session: Session, tiered: Tiered, made: commits.Commit, old: str | None) -> bool:
    """Let a new version of the base count in the place of another; whether that one still counted. A transaction is open."""
    swapped = await session.query(
        "WITH t AS (UPDATE howdah.tiers SET metadata = $2, snapshot_id = $3, generation = generation + 1, files = $4, bytes = $5"
        " WHERE rel = $1::oid AND metadata IS NOT DISTINCT FROM $6 RETURNING rows)"
        " INSERT INTO howdah.tier_snapshots (rel, snapshot_id, rows, files, bytes) SELECT $1::oid, $3, rows, $4, $5 FROM t"
        " ON CONFLICT (rel, snapshot_id) DO UPDATE SET rows = excluded.rows",
        (tiered.oid, made.metadata, made.snapshot, made.total_files, made.total_bytes, old),
        None,
    )
    return swapped.affected > 0
