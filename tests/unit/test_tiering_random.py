"""Random statements over tiered tables in a directory, beside a plain table given the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from howdah import Database
from tests.tiering import SEED, STATEMENTS, episode


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(8))
def test_random_statements_do_as_on_a_plain_table(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("howdah.database.overlay.upkeep.RUN", 3 + number % 3)
    with Database.open(database_url) as db:
        episode(db, tmp_path, f"{SEED} {number}", STATEMENTS * 72 // 80 // 8, alters=number % 4 == 0,
                unique=number % 2 == 1, triggers=number % 4 >= 2, partition_by=[])  # fmt: skip
