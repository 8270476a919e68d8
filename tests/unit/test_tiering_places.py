"""Random statements over tiered tables in partitions, an archive and on S3, beside a plain table given the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from howdah import Database
from tests.tiering import SEED, STATEMENTS, episode


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("kind", ["partitions", "s3"])
def test_random_statements_do_as_on_a_plain_table(
    database_url: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: int,
) -> None:
    monkeypatch.setattr("howdah.database.overlay.upkeep.RUN", 2 + number)
    policy: dict[str, Any] = {"partition_by": ["day(ts)", "kind"], "sort_by": ["n", "id"], "archive_after": 0}
    policy["archive_location"] = tmp_path / "archive"
    if kind == "s3":
        policy = {"location": request.getfixturevalue("s3"), "partition_by": "bucket(3, id)"}
    with Database.open(database_url) as db:
        episode(
            db,
            tmp_path,
            f"{SEED} {kind} {number}",
            STATEMENTS // (100 if kind == "s3" else 80),
            alters=number == 0,
            **policy,
        )
