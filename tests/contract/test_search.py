"""Text, vector, sparse and hybrid search on every engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest

import howdah
from howdah import (
    DBSF,
    HNSW,
    RRF,
    Dense,
    DimensionMismatch,
    EmbeddingMismatch,
    InvalidInput,
    InvalidLimit,
    InvalidValue,
    QuerySyntaxError,
    Sparse,
    Store,
    Text,
    Unsupported,
    Vector,
)
from howdah.search.bm25 import K1, B, idf
from tests.conftest import open_store


@dataclass
class Doc:
    id: int
    title: str
    body: str | None
    lang: str = "en"


DOCS = [
    Doc(1, "Rotating API keys", "Make a new key, switch every client over, then revoke the old key."),
    Doc(2, "Backups", "Back up the database each night. Keep thirty backups."),
    Doc(3, "snake_case and camelCase", "Use getUserName, get_user_name or v1.2.3 in utf-8 text."),
    Doc(4, "日本語の文書", "これは東京タワーについての文書です。", "ja"),
    Doc(5, "Empty", None),
    Doc(6, "Keys", "keys keys keys", "de"),
    Doc(7, "Naïve café", "The café's naïve façade isn't new."),
]


@pytest.fixture
def docs(store: Store) -> Any:
    table = store.table(Doc, key="id", text={"title": 3, "body": 1}, indexes=["lang"])
    table.put_many(DOCS)
    return table


def found(table: Any, text: str, **options: Any) -> list[int]:
    return [h.key for h in table.search(text=text, **options)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("how do I rotate the keys?", [1, 6]),
        ("KEY", [6, 1]),
        ("backing", [2]),
        ('"new key"', [1]),
        ('"key new"', []),
        ("+client key", [1]),
        ("key -revoke", [6]),
        ('key -"new key"', [6]),
        ("rot*", [1]),
        ("title:keys", [1, 6]),
        ("body:rotating", []),
        ("body:backups", [2]),
        ("unknownfield:keys", [6, 1]),
        ("snake_case", [3]),
        ("snake", [3]),
        ("getUserName", [3]),
        ("username get_user_name", [3]),
        ("user", [3]),
        ("v1.2.3", [3]),
        ("utf-8", [3]),
        ("東京", [4]),
        ("京", [4]),
        ("タワー", [4]),
        ("cafe", []),
        ("café", [7]),
        ("isn't", [7]),
        ("the", [1, 2, 7]),
        ("zzz qqq", []),
        ("databas", [2]),
        ("data", [2]),
    ],
)
def test_text_queries(text: str, expected: list[int], store: Store) -> None:
    table = store.table(Doc, key="id", text={"title": 3, "body": 1})
    table.put_many(DOCS)
    assert sorted(found(table, text)) == sorted(expected)


def test_ranking_is_lucenes_bm25(docs: Any) -> None:
    hits = docs.search(text="backups")
    lengths = []
    from howdah.search.analyzer import count_terms

    for doc in DOCS:
        lengths.append(round(3 * count_terms(doc.title)[1] + count_terms(doc.body or "")[1]))
    average = sum(lengths) / len(lengths)
    tf = 3 * 1 + 2  # once in the title, "up"-less: "Back" and "backups" stem apart
    counts = count_terms(DOCS[1].body or "")[0]
    tf = 3 * count_terms(DOCS[1].title)[0]["backup"] + counts["backup"]
    expected = idf(1, 7) * tf / (tf + K1 * (1 - B + B * lengths[1] / average))
    assert hits[0].score == pytest.approx(expected, rel=1e-9)
    assert hits[0].matches[0].rank == 1
    assert hits.plan == {"text": "bm25"}


@pytest.mark.parametrize("text", ["", "   ", "...", "-", '""', None, 5])
def test_blank_queries_are_refused(docs: Any, text: Any) -> None:
    with pytest.raises(InvalidInput):
        docs.search(text=text)


def test_a_query_that_only_excludes_is_refused(docs: Any) -> None:
    for text in ("-key", '-"new key" -old'):
        with pytest.raises(QuerySyntaxError):
            docs.search(text=text)


def test_the_index_follows_every_write(docs: Any) -> None:
    docs.put(Doc(1, "Renamed", "Nothing of interest"))
    assert found(docs, "rotate") == []
    assert found(docs, "renamed") == [1]
    docs.update_one({"id": 2}, {"title": "Archives"})
    assert found(docs, "archives thirty") == [2]
    docs.update_where({"lang": "en"}, {"title": "Common"})
    assert sorted(found(docs, "common")) == [1, 2, 3, 5, 7]
    docs.delete(3)
    docs.delete_where({"lang": "ja"})
    assert found(docs, "snake 東京") == []
    docs.create(Doc(9, "Fresh", "made by create"))
    assert found(docs, "fresh") == [9]
    docs.merge({"id": 9, "body": "merged text"})
    assert found(docs, "merged") == [9]
    docs.clear()
    assert found(docs, "common fresh") == []


def test_rollback_takes_the_index_along(docs: Any, store: Store) -> None:
    with pytest.raises(KeyError), store.transaction():
        docs.put(Doc(50, "Ephemeral", "gone soon"))
        assert found(docs, "ephemeral") == [50]
        raise KeyError
    assert found(docs, "ephemeral") == []


def test_ranking_does_not_depend_on_how_the_index_grew(store: Store) -> None:
    words = [f"w{i}" for i in range(40)]
    random_ = random.Random(3)
    rows = [
        Doc(i, " ".join(random_.choices(words, k=3)), " ".join(random_.choices(words, k=random_.randint(1, 40))))
        for i in range(300)
    ]
    bulk = store.table("bulk", Doc, key="id", text={"title": 3, "body": 1})
    bulk.put_many(rows)
    slow = store.table("slow", Doc, key="id", text={"title": 3, "body": 1})
    slow.put_many([Doc(i, "old words", "to be replaced") for i in range(100)])
    for start in range(0, 300, 3):
        slow.put_many(rows[start : start + 3])
    for number in range(300, 330):
        slow.put(Doc(number, "w1", "w2 extra"))
    assert slow.delete_where(slow.c.id >= 300) == 30
    queries = ["w1 w2 w3", "w5", '"w1 w2"', "title:w7 w8", "w1*", "+w3 w4"]
    before = [[(h.key, h.score) for h in slow.search(text=q, limit=50)] for q in queries]
    expected = [[(h.key, h.score) for h in bulk.search(text=q, limit=50)] for q in queries]
    assert before == expected
    store.maintain()
    assert [[(h.key, h.score) for h in slow.search(text=q, limit=50)] for q in queries] == expected
    slow.put(rows[0])
    assert [(h.key, h.score) for h in slow.search(text="w1 w2", limit=300)] == [
        (h.key, h.score) for h in bulk.search(text="w1 w2", limit=300)
    ]


def test_filters_are_part_of_a_text_search(store: Store) -> None:
    table = store.table(Doc, key="id", text=["body"], indexes=["lang"])
    table.put_many([Doc(i, "t", "common word " * (i % 7 + 1), "rare" if i % 500 == 0 else "en") for i in range(6000)])
    hits = table.search(text="common", where={"lang": "rare"}, limit=20)
    assert sorted(h.key for h in hits) == list(range(0, 6000, 500))
    assert len(table.search(text="common", limit=None)) == 6000
    assert [h.key for h in table.search(text="common", limit=5)] == [
        h.key for h in table.search(text="common", limit=300)
    ][:5]
    ties = table.search(text="common", limit=900)
    assert [h.key for h in ties] == [h.key for h in sorted(ties, key=lambda h: (-h.score, h.key))]
    top = ties[0].score
    assert table.search(text="common", min_score=top, limit=None) == [
        h for h in table.search(text="common", limit=None) if h.score >= top
    ]


@dataclass
class Vec:
    id: int
    v: Annotated[Any, howdah.vector(8)]
    tag: str = "a"


def vectors(count: int, dim: int = 8, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def test_dense_search_by_metric(store: Store) -> None:
    for metric in ("cosine", "l2", "ip"):
        kv = store.vectors(f"m_{metric}", dim=3, metric=metric)
        kv.put_many([Vector("a", [1, 0, 0]), Vector("b", [0, 2, 0]), Vector("c", [-3, 0, 0]), Vector("z", [0, 0, 0])])
        hits = {h.key: h for h in kv.search([2, 0, 0])}
        expected = {
            "cosine": {"a": 1.0, "b": 0.0, "c": -1.0, "z": 0.0},
            "l2": {"a": 0.5, "b": 1 / (1 + 8**0.5), "c": 1 / 6, "z": 1 / 3},
            "ip": {"a": 2.0, "b": 0.0, "c": -6.0, "z": 0.0},
        }[metric]
        assert {k: pytest.approx(h.score) for k, h in hits.items()} == expected
        assert [h.key for h in kv.search([2, 0, 0])] == sorted(expected, key=lambda k: (-expected[k], k))
        assert [h.key for h in kv.search([2, 0, 0], min_score=expected["z"])] == [
            k for k in sorted(expected, key=lambda k: (-expected[k], k)) if expected[k] >= expected["z"]
        ]


def test_a_zero_query_scores_zero_everywhere(store: Store) -> None:
    table = store.table(Vec, key="id")
    table.put_many([Vec(i, v) for i, v in enumerate(vectors(20))])
    hits = table.search([0.0] * 8, limit=5)
    assert [(h.key, h.score) for h in hits] == [(i, 0.0) for i in range(5)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_dtypes(store: Store, dtype: Any) -> None:
    kv = store.vectors("t", dim=4, dtype=dtype)
    kv.put(Vector("a", [1, -2, 3, 100]))
    found = kv.get("a")
    assert found is not None
    assert found.dense.dtype == np.dtype(dtype)
    assert found.dense.tolist() == [1, -2, 3, 100]
    assert kv.search([1, -2, 3, 100])[0].score == pytest.approx(1)
    for bad in ([1, 2, 3, 1e39], [1, 2, 3, float("nan")]):
        with pytest.raises(InvalidValue):
            kv.put(Vector("b", bad))


@pytest.mark.parametrize("bad", [[1, 2], [1, 2, 3, 4], [], [[1, 2, 3]], "abc", [1, "2", 3], [1, 2, None], 5])
def test_bad_vectors_are_refused_with_the_whole_batch(store: Store, bad: Any) -> None:
    kv = store.vectors("t", dim=3)
    with pytest.raises(InvalidValue):
        kv.put_many([Vector("a", [1, 2, 3]), Vector("b", bad)])
    assert kv.count() == 0
    with pytest.raises(InvalidValue):
        kv.search(bad)
    with pytest.raises(DimensionMismatch, match="2 dimensions, the column 3"):
        kv.put(Vector("b", [1, 2]))


def test_the_first_vector_sets_the_length(store: Store) -> None:
    kv = store.vectors("free")
    assert kv.search([1, 2]) == []
    assert kv.count() == 0
    kv.put(Vector("a", [1, 2]))
    assert kv.dim == 2
    again = store.vectors("free")
    assert again.get("a") is not None
    with pytest.raises(DimensionMismatch):
        again.put(Vector("b", [1, 2, 3]))


def test_records_are_replaced_whole_and_metadata_is_only_metadata(store: Store) -> None:
    kv = store.vectors("t", dim=2, sparse_dim=50, text={"content": 1})
    meta = {"active": False, "namespace": "x", "key": "y", "n": None}
    kv.put({"key": "a", "dense": [1, 0], "sparse": ([3, 1], [1.0, 2.0]), "metadata": meta, "content": "hello world"})
    record = kv.get("a")
    assert record is not None
    assert record.metadata == meta
    assert record.sparse[0].tolist() == [1, 3]
    assert [h.key for h in kv.search(text="hello", where={"key": "y", "n": None})] == ["a"]
    kv.put({"key": "a", "dense": [0, 1]})
    record = kv.get("a")
    assert record is not None
    assert (record.sparse, record.metadata, record.content) == (None, None, None)
    assert kv.search(text="hello") == []
    assert kv.search(sparse=([1], [1.0])) == []
    for bad in (
        {"key": "b"},
        {"dense": [1, 2]},
        {"key": "b", "dense": [1, 2], "meta": 1},
        {"key": "b", "dense": [1, 2], "metadata": []},
        5,
    ):
        with pytest.raises(InvalidInput):
            kv.put(bad)
    for sparse in (
        ([1], [1, 2]),
        ([], []),
        ([1, 1], [1, 2]),
        ([-1], [1]),
        ([50], [1]),
        ([1], [float("inf")]),
        ([1.5], [1]),
    ):
        with pytest.raises(InvalidValue):
            kv.put({"key": "b", "sparse": sparse})


def test_sparse_search(store: Store) -> None:
    metric: Any
    for metric, expected in (("cosine", ["b", "a", "d"]), ("ip", ["a", "b", "d"])):
        kv = store.vectors(f"s_{metric}", sparse_dim=1000, sparse_metric=metric)
        kv.put_many(
            [
                Vector("a", sparse=([1, 2, 3], [5.0, 5.0, 5.0])),
                Vector("b", sparse=([1, 2], [1.0, 1.0])),
                Vector("d", sparse=([900], [1.0])),
            ]
        )
        hits = kv.search(sparse=([2, 1], [1.0, 1.0]))
        assert [h.key for h in hits] == expected
        assert hits[-1].score == 0
        with pytest.raises(Unsupported):
            kv.search([1.0])


def test_capabilities_tell_what_a_search_can_do(store: Store) -> None:
    for name, options, expected in (
        ("c_dense", {"dim": 2}, (True, False, False)),
        ("c_sparse", {"sparse_dim": 9}, (False, True, False)),
        ("c_both", {"dim": 2, "sparse_dim": 9}, (True, True, True)),
        ("c_text", {"dim": 2, "text": ["content"]}, (True, False, True)),
        ("c_later", {"text": ["content"]}, (True, False, True)),
    ):
        vectors = store.vectors(name, **options)
        found = vectors.capabilities
        assert (found.dense, found.sparse, found.hybrid) == expected, name
        assert (found.fusion, found.filter, found.consistency) == (("rrf", "dbsf"), "pre", "strong")
        if not found.dense:
            with pytest.raises(Unsupported):
                vectors.search([1.0, 0.0])
        if not found.sparse:
            with pytest.raises(Unsupported):
                vectors.search(sparse=([1], [1.0]))


def test_hybrid_scores(store: Store) -> None:
    kv = store.vectors("h", dim=2, text={"content": 1})
    kv.put_many(
        [
            Vector("a", [1, 0], content="apple pie"),
            Vector("b", [0.9, 0.1], content="apple"),
            Vector("c", [0, 1], content="pear"),
        ]
    )
    hits = kv.search([1, 0], text="apple", explain=True)
    assert {h.key for h in hits} == {"a", "b", "c"}
    assert all(0 <= h.score <= 1 for h in hits)
    best = hits[0]
    ranks = {m.leg: m.rank for m in best.matches}
    assert best.score == pytest.approx((1 / (60 + ranks["dense"]) + 1 / (60 + ranks["text"])) * 61 / 2)
    assert hits.explain is not None
    assert hits.explain["legs"]["text"]["candidates"] == 2
    only_text = kv.search([1, 0], text="apple", weights={"dense": 0, "text": 1})
    assert [h.key for h in only_text] == [h.key for h in kv.search(text="apple")]
    assert [h.key for h in kv.search([1, 0], text="  ")] == [h.key for h in kv.search([1, 0])]
    dbsf = kv.search([1, 0], text="apple", fusion=DBSF())
    assert all(0 <= h.score <= 1 for h in dbsf)
    legs = kv.search(legs=[Dense([1, 0], candidates=50), Text("apple")], fusion=RRF(k=10), limit=2)
    assert len(legs) == 2
    for bad in (
        {"weights": {"dense": 2}},
        {"weights": {"nope": 1}},
        {"weights": {"dense": 0, "text": 0}},
        {"fusion": "max"},
        {"legs": [Dense([1, 0])]},
        {"min_score": "1"},
        {"ef": 0},
        {"limit": -1},
    ):
        with pytest.raises((InvalidInput, InvalidLimit)):
            kv.search([1, 0], text="apple", **bad)
    empty: Any
    for empty in ({}, {"legs": []}):
        with pytest.raises(InvalidValue):
            kv.search(**empty)
    with pytest.raises(InvalidValue):
        kv.search(legs=[Dense([1, 0], candidates=3)], limit=10)
    with pytest.raises(Unsupported):
        kv.search(legs=[Sparse(([1], [1.0]))])
    assert kv.search([1, 0], limit=0) == []


def test_ann_recall_and_filters(store: Store, engine: str) -> None:
    count = 12_000
    data = vectors(count, 8)
    table = store.table(Vec, key="id", indexes=["tag"])
    table.put_many(
        [
            Vec(i, v, "half" if i % 2 else "one" if i % 100 == 0 else "few" if i % 1000 == 2 else "rest")
            for i, v in enumerate(data)
        ]
    )
    store.maintain()
    unit = data / np.linalg.norm(data, axis=1, keepdims=True)
    tags = np.array([r["tag"] for r in table.query(select=["tag"], order_by="id").all()])
    hit, wanted = 0, 0
    for query in vectors(20, 8, 2):
        scores = unit @ (query / np.linalg.norm(query))
        for tag in (None, "half", "one", "few"):
            allowed = np.arange(count) if tag is None else np.flatnonzero(tags == tag)
            top = allowed[np.argsort(-scores[allowed])][:10]
            hits = table.search(query, limit=10, where=None if tag is None else {"tag": tag})
            assert len(hits) == min(10, len(allowed))
            assert all(h.row.tag == tag for h in hits) or tag is None
            assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
            hit += len({h.key for h in hits} & set(top.tolist()))
            wanted += len(top)
            exact = table.search(query, limit=10, where=None if tag is None else {"tag": tag}, exact=True)
            assert [h.key for h in exact] == top.tolist()
    assert hit / wanted >= 0.95
    assert table.search(data[0]).plan["dense"] == "hnsw"
    assert len(table.search(data[0], limit=3000)) == 3000


def test_deletes_and_updates_show_in_vector_search_at_once(store: Store) -> None:
    table = store.table(Vec, key="id")
    data = vectors(300)
    table.put_many([Vec(i, v) for i, v in enumerate(data)])
    assert table.search(data[7], limit=1)[0].key == 7
    table.delete(7)
    assert table.search(data[7], limit=1)[0].key != 7
    table.put(Vec(8, data[7]))
    assert table.search(data[7], limit=1)[0].key == 8
    table.update_one({"id": 9}, {"v": -data[7]})
    assert table.search(-data[7], limit=1)[0].key == 9
    with pytest.raises(KeyError), _rolling_back(table):
        table.put(Vec(1000, data[7] * 2))
        assert {h.key for h in table.search(data[7], limit=2)} == {8, 1000}
        raise KeyError
    table.put(Vec(2000, -data[3]))
    assert table.search(data[7], limit=1)[0].key == 8
    assert table.search(-data[3], limit=1)[0].key == 2000


def _rolling_back(table: Any) -> Any:
    engine = table._async._engine
    from howdah.blocking.store import Store as Blocking
    from howdah.store import AsyncStore

    return Blocking(AsyncStore(engine), table._run).transaction()


def test_vectors_remember_their_model(store: Store) -> None:
    store.vectors("m", dim=2, model="one").put(Vector("a", [1, 2]))
    with pytest.raises(EmbeddingMismatch, match="one"):
        store.vectors("m", dim=2, model="two").search([1, 2])
    with pytest.raises(EmbeddingMismatch):
        store.vectors("m", dim=2, model="two").put(Vector("b", [1, 2]))
    assert store.vectors("m", dim=2).count() == 1


def test_own_model_and_options(store: Store) -> None:
    kv = store.vectors(Vec, key="id", index=HNSW(m=8, ef_construction=32))
    kv.put_many([Vec(i, v) for i, v in enumerate(vectors(5))])
    assert kv.search(vectors(5)[2])[0].key == 2
    assert kv.stats().count == 5
    assert kv.stats().dim == 8
    assert [len(h) for h in kv.search_many(list(vectors(3)), limit=2)] == [2, 2, 2]
    with pytest.raises(InvalidInput):
        store.vectors(Doc, key="id")
    with pytest.raises(InvalidInput):
        store.vectors("x", dim=0)
    with pytest.raises(InvalidInput):
        store.vectors("x", dim=2, metric="hamming")  # type: ignore[arg-type]


def test_quantized_indexes_rank_by_what_is_stored(store: Store, engine: str) -> None:
    rng = np.random.default_rng(5)
    whole = store.vectors("whole", dim=24)
    half = store.vectors("half", dim=24, index=HNSW(quantize="half"))
    close = rng.standard_normal(24).astype(np.float32)
    rows = [Vector(f"k{i}", close + rng.standard_normal(24).astype(np.float32) * 1e-5) for i in range(200)]
    for kv in (whole, half):
        kv.put_many([Vector(r.key, r.dense) for r in rows])
    exact = [(h.key, h.score) for h in whole.search(close, limit=200, exact=True)]
    found = half.search(close, limit=200)
    # With 16 bits a number these are all the same.
    assert [(h.key, h.score) for h in found] == exact
    assert half.search(close, limit=5).plan["dense"] == ("hnsw" if engine in ("pg", "server") else found.plan["dense"])
    long = store.vectors("long", dim=3000)
    long.put_many([Vector(f"k{i}", rng.standard_normal(3000)) for i in range(20)])
    wanted = rng.standard_normal(3000)
    assert [h.key for h in long.search(wanted)] == [h.key for h in long.search(wanted, exact=True)]
    half.put_many([Vector("tiny", (close * 1e-9).tolist()), Vector("huge", (close * 1e9).tolist())])
    for query in (close, close * 1e-9):
        assert {h.key for h in half.search(query.tolist(), limit=202)[:2]} == {"tiny", "huge"}
    far = store.vectors("far", dim=2500, metric="l2")
    far.put(Vector("a", [70_000.0] * 2500))
    assert far.search([70_001.0] * 2500)[0].key == "a"
    with pytest.raises(InvalidInput, match="cosine"):
        store.vectors("wrong", dim=3, metric="l2", index=HNSW(quantize="half"))
    store.vectors("later", dim=3).put(Vector("a", [1, 2, 3]))
    later = store.vectors("later", dim=3, index=HNSW(quantize="half"))
    assert [h.key for h in later.search([1, 2, 3])] == ["a"]
    with pytest.raises(InvalidInput, match="quantize"):
        HNSW(quantize="quarter")  # type: ignore[arg-type]


def test_paging_counting_and_deleting_vectors(store: Store) -> None:
    kv = store.vectors("p", dim=2)
    kv.put_many([Vector(f"k{i}", [i, 1], metadata={"even": i % 2 == 0}) for i in range(10)])
    page = kv.page(limit=4)
    assert [r.key for r in page.items] == ["k0", "k1", "k2", "k3"]
    assert [r.key for r in kv.page(limit=40, cursor=page.next_cursor).items] == [f"k{i}" for i in range(4, 10)]
    assert kv.count({"even": True}) == 5
    assert list(kv.get_many(["k3", "zz", "k1"])) == ["k3", "k1"]
    assert kv.delete("k1") is True
    assert kv.delete_many(["k1", "k2"]) == 1
    assert kv.delete_where({"even": False}) == 4
    assert kv.clear() == 4


def test_scoped_vector_search_stays_inside(store: Store) -> None:
    one, two = (
        store.scoped("t1").vectors("v", dim=2, text=["content"]),
        store.scoped("t2").vectors("v", dim=2, text=["content"]),
    )
    one.put_many([Vector("a", [1, 0], content="red fox")])
    two.put_many([Vector("a", [1, 0], content="red fish"), Vector("b", [1, 0])])
    assert [h.key for h in one.search([1, 0])] == ["a"]
    assert [h.row.content for h in one.search(text="red")] == ["red fox"]
    assert one.count() == 1
    assert len(store.vectors("v", dim=2, text=["content"]).search([1, 0])) == 3


def test_engines_agree_on_ranking(url_for: Callable[[str], str]) -> None:
    results = []
    for engine in ("memory", "sqlite", "pg", "server"):
        with open_store(engine, url_for(engine)) as store:
            kv = store.vectors("r", dim=8, text={"content": 1}, sparse_dim=30)
            random_ = random.Random(5)
            kv.put_many(
                [
                    Vector(
                        f"{i}",
                        v,
                        sparse=(random_.sample(range(30), 3), [1.0, 0.5, 0.25]),
                        content=" ".join(random_.choices("abcdefgh", k=12)),
                    )
                    for i, v in enumerate(vectors(200))
                ]
            )
            query = vectors(1, seed=9)[0]
            hits = kv.search(query, text="a b c", sparse=([1, 2], [1.0, 1.0]), limit=20)
            text = kv.search(text='a "b c" -d', limit=50)
            results.append(
                [
                    [(h.key, round(h.score, 9)) for h in hits],
                    [(h.key, h.score) for h in text],
                    [(h.key, h.score) for h in kv.search(query)],
                ]
            )
    assert results[0] == results[1] == results[2] == results[3]
