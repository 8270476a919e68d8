"""Analysis, BM25, the query grammar, snippets, fusion and vectors, without storage."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from hypothesis import given, strategies as st

from howdah import DimensionMismatch, InvalidInput
from howdah.search import bm25, cosine, hamming, jaccard
from howdah.search.analyzer import analyse_unit, count_terms, query_terms, units
from howdah.search.fusion import DBSF, RRF
from howdah.search.query import parse
from howdah.search.snippets import extract
from howdah.search.vectors import distances, exact_distances, sparse_distance


@pytest.mark.parametrize(
    ("unit", "parts", "whole"),
    [
        ("Running", ("run",), ()),
        ("snake_case", ("snake", "case"), ("snake_case",)),
        ("getUserName", ("get", "user", "name"), ("getusername",)),
        ("HTTPServer", ("http", "server"), ("httpserver",)),
        ("v1.2.3", ("v", "1", "2", "3"), ("v1", "v1_2_3")),
        ("utf-8", ("utf", "8"), ("utf_8",)),
        ("don't", ("don't",), ()),
        ("東京都", ("東", "京", "都"), ("東京", "京都")),
        ("ﬁle", ("file",), ()),
        ("___", (), ()),
    ],
)
def test_units(unit: str, parts: tuple[str, ...], whole: tuple[str, ...]) -> None:
    found = analyse_unit(unit)
    assert found.parts == parts
    assert set(found.whole) == set(whole)


@given(st.text(max_size=200))
def test_any_text_can_be_analysed(text: str) -> None:
    counts, length = count_terms(text)
    assert all(counts.values())
    assert length <= sum(counts.values())
    for unit in units(text):
        assert set(query_terms(unit)) <= set(counts)


def test_cjk_queries_use_bigrams() -> None:
    assert query_terms("東京都") == ("東京", "京都")
    assert query_terms("東") == ("東",)


def test_the_grammar() -> None:
    query = parse('rotate the +keys -"old thing" title:api conf* "new key"', ("title",))
    assert [c.terms for c in query.should if not c.stop] == [("rotat",), ("api",), ()]
    assert [c.field for c in query.should if c.field] == ["title"]
    assert [c.prefix for c in query.should if c.prefix] == ["conf"]
    assert [c.terms for c in query.must] == [("key",), ("new", "key")]
    assert [c.phrase for c in query.must_not] == [("old", "thing")]
    assert all(not c.stop for c in query.ranking())
    assert all(c.stop for c in parse("what is the").ranking())
    assert parse('an open "quote').should


@given(st.text(max_size=60))
def test_any_query_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse(text, ("title",))


def test_postings_pack_and_merge() -> None:
    random_ = random.Random(1)
    for columns in (1, 3):
        ids = np.array(sorted(random_.sample(range(10**6), 500)), np.int64) + 2**40
        postings = bm25.Postings(ids, np.arange(500, dtype=np.uint16), np.ones((columns, 500), np.uint8))
        again = bm25.unpack(bm25.pack(postings), 500, columns)
        assert (again.ids == ids).all()
        assert (again.lengths == postings.lengths).all()
        assert again.counts.shape == (columns, 500)
        dead = ids[::2]
        merged, left, frequency = bm25.gather(
            [(500, bm25.pack(postings)), (-len(dead), bm25.pack_deleted(dead))], columns
        )
        assert (merged.ids == ids[1::2]).all()
        assert len(left) == 0
        assert frequency == 250
        only, left, frequency = bm25.gather([(-2, bm25.pack_deleted(ids[:2]))], columns)
        assert (len(only.ids), left.tolist(), frequency) == (0, ids[:2].tolist(), -2)
    wide = bm25.Postings(np.array([1, 2, 2**33]), np.zeros(3, np.uint16), np.zeros((1, 3), np.uint8))
    assert [r.ids.tolist() for r in bm25.split_runs(wide)] == [[1, 2], [2**33]]


def test_accumulating_scores_is_the_same_dense_and_sparse() -> None:
    dense = [(np.array([1, 5, 9]), np.array([1.0, 2, 3])), (np.array([5, 9]), np.array([0.5, 0.25]))]
    far = [(ids * 10**9, scores) for ids, scores in dense]
    near_ids, near = bm25.accumulate(dense).pairs()
    far_ids, spread = bm25.accumulate(far).pairs()
    assert near_ids.tolist() == [1, 5, 9]
    assert (far_ids // 10**9).tolist() == [1, 5, 9]
    assert near.tolist() == spread.tolist() == [1.0, 2.5, 3.25]
    ids, scores = bm25.best(np.arange(10), np.array([1.0, 5, 5, 5, 2, 0, 0, 0, 0, 0]), 2)
    assert ids.tolist() == [1, 2, 3]
    assert set(scores.tolist()) == {5.0}


def test_snippets() -> None:
    text = "\n".join(["alpha", "", "beta one", "gamma keys here", "delta", "epsilon", "zeta"])
    found = extract(text, ["key"], first_line=10)
    assert (found.line, found.start, found.count) == (13, 12, 4)
    assert found.text.split("\n")[1] == "gamma keys here"
    assert found.header == "@@ -12,4 @@ (11 before, 1 after)"
    assert extract(text, ["nothing"]).line == 1
    long = "word " * 500 + "needle " + "word " * 500
    shown = extract(long, ["needl"], limit=100)
    assert "needle" in shown.text
    assert len(shown.text) <= 103
    assert extract("", []).text == ""


@given(st.text(max_size=300), st.integers(20, 200))
def test_any_snippet_fits(text: str, limit: int) -> None:
    assert len(extract(text, ["a"], limit=limit).text) <= limit + 2


def test_fusion() -> None:
    lists = {"a": [("x", 0.9), ("y", 0.5)], "b": [("y", 12.0)]}
    fused = RRF().fuse(lists, {"a": 1.0, "b": 1.0})
    assert fused["y"] == pytest.approx((1 / 62 + 1 / 61) * 61 / 2)
    assert RRF().fuse({"a": [("x", 1.0)], "b": [("x", 2.0)]}, {"a": 1.0, "b": 1.0})["x"] == 1
    spread = DBSF().fuse(lists, {"a": 1.0, "b": 1.0})
    assert spread["y"] == pytest.approx(((0.5 - 0.7 + 0.6) / 1.2 + 0.5) / 2)
    with pytest.raises(InvalidInput):
        RRF(k=0)


def test_similarities() -> None:
    assert cosine([1, 0], [0, 1]) == 0
    assert cosine([0, 0], [1, 1]) == 0
    assert cosine([1, 1], [-1, -1]) == pytest.approx(-1)
    assert jaccard([1, 2], [1, 4]) == pytest.approx(3 / 5)
    assert hamming([1, 2, 3, 4], [1, 2, 0, 0]) == 0.5
    with pytest.raises(DimensionMismatch):
        cosine([1], [1, 2])
    rows = np.random.default_rng(1).standard_normal((50, 7)).astype(np.float32)
    query = rows[3]
    for metric in ("cosine", "l2", "ip"):
        assert distances(rows, query, metric) == pytest.approx(exact_distances(rows, query, metric), abs=1e-5)
    left = (np.array([1, 5]), np.array([1.0, 2.0]))
    assert sparse_distance(left, left, "cosine") == pytest.approx(0)
    assert sparse_distance(left, left, "ip") == -5


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_the_best_of_many_are_the_same_by_blocks_and_by_listing(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    ids = np.sort(random.choice(30_000, size=int(random.integers(1, 9000)), replace=False)) + 7
    scores = np.round(random.random(len(ids)) + 0.01, int(random.integers(1, 6)))  # ties, too
    matches = bm25.accumulate([(ids, scores), (ids[:1], scores[:1])])
    expected = bm25.best(*bm25.accumulate([(ids, scores), (ids[:1], scores[:1])]).pairs(), count)
    found = matches.best(count)
    assert found[0].tolist() == expected[0].tolist()
    assert found[1].tolist() == expected[1].tolist()
