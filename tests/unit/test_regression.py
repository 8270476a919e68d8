"""Postgres' own regression SQL gives on tiered tables, half of whose rows are on object storage, what it gives on plain ones."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from howdah import Database
from tests.conftest import Servers, fresh_database
from tests.regression import ROWS, Regression, sources, statements, tables

FILES = {
    "join": 500,
    "subselect": 210,
    "window": 330,
    "insert_conflict": 215,
    "union": 110,
}
"""The files that are run, and how many of their statements at least give the same."""
MORE = {
    "aggregates": 400,
    "case": 55,
    "delete": 8,
    "groupingsets": 130,
    "limit": 30,
    "returning": 115,
    "select": 65,
    "select_distinct": 40,
    "select_distinct_on": 10,
    "select_having": 20,
    "select_implicit": 40,
    "update": 215,
    "with": 260,
}
"""Those that are run where HOWDAH_REGRESSION=all is set."""
KEYS = {"insertconflicttest": "key"}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = sources(tmp_path_factory.mktemp("regression"))
    if found is None:
        pytest.skip("the package index cannot be reached")
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FILES | MORE if os.environ.get("HOWDAH_REGRESSION") == "all" else FILES)
def test_regression_sql_gives_the_same(servers: Servers, files: Path, tmp_path: Path, name: str) -> None:
    with ExitStack() as stack:
        plain, shuffled, tiered = (
            stack.enter_context(Database.open(stack.enter_context(fresh_database(servers)))) for _ in range(3)
        )
        regression = Regression(plain, shuffled, tiered, tmp_path)
        regression.run(tables(ROWS))
        assert not regression.different
        assert regression.count["tables tiered"] == 13
        status = next(s for s in tiered.tiers() if s.table == "public.tenk1")
        assert (status.hot_rows + status.warm_rows, status.hot_rows // (ROWS * 3 // 10)) == (ROWS, 1)
        regression.count.clear()
        regression.run((files / f"{name}.sql").read_text(), KEYS)
        assert not regression.different
        assert regression.count["same"] >= (FILES | MORE)[name], (regression.count, regression.refused)


def test_a_script_is_read_as_psql_reads_it() -> None:
    text = """-- a remark; of two
\\set x 1
create temp table t (a text); /* ; */ insert into t values ('a;b''', $x$;$x$) \\gset
copy t from stdin;
1;2
\\.
create function f() returns int begin atomic; select 1; end;
select "a;b", (1) from t;
"""
    assert list(statements(text)) == [
        "create table t (a text)",
        "insert into t values ('a;b''', $x$;$x$)",
        "create function f() returns int begin atomic; select 1; end",
        'select "a;b", (1) from t',
    ]
