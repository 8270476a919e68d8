"""The shape of a table: typed columns, a key, and its ordered, unique, text and vector indexes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from .errors import InvalidInput, InvalidName, UnknownColumn
from .values import MISSING, check_name

Kind = Literal[
    "text", "integer", "real", "boolean", "timestamp", "uuid", "decimal", "bytes", "json", "vector", "sparse"
]
Dtype = Literal["float32", "float16", "int8"]
Metric = Literal["cosine", "l2", "ip"]
ClientKeys = Literal["if-missing", "never", "always"]

UNSORTABLE: Final = frozenset({"bytes", "json", "vector", "sparse"})
MAX_DIM: Final = {"float32": 16_000, "float16": 16_000, "int8": 16_000}
MOST_WHOLE: Final = 2000
"""The longest vectors that pgvector indexes as they are."""
MOST_INDEXED: Final = 4000
"""The longest that it indexes with 16 bits a number; longer ones are scanned exactly."""


@dataclass(frozen=True, slots=True)
class HNSW:
    """Approximate nearest-neighbour index: ``m`` links a node, ``ef_construction`` and ``ef`` candidates.

    ``quantize="half"`` (for ``cosine``) keeps 16 bits of each number in the index, which then is half as large; what it finds
    is ranked anew by the vectors as they are stored. On Postgres so do, always, ``cosine`` vectors of 2,001 to 4,000 numbers
    (longer ones, and those of other metrics beyond 2,000, are scanned), on SQLite all.
    """

    m: int = 16
    ef_construction: int = 64
    ef: int = 100
    quantize: Literal["half"] | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.m <= 100 or not self.m * 2 <= self.ef_construction <= 1000 or not 1 <= self.ef <= 1000:
            raise InvalidInput("HNSW: expected 2 <= m <= 100, 2*m <= ef_construction <= 1000, 1 <= ef <= 1000")
        if self.quantize not in (None, "half"):
            raise InvalidInput(f"HNSW: quantize={self.quantize!r}: expected 'half' or None")


class Auto:
    """Marks a key column whose values the store generates: ``Annotated[int, howdah.Auto]``."""


@dataclass(frozen=True, slots=True)
class VectorType:
    """Marks a column as a vector: ``Annotated[list[float], howdah.vector(384)]``."""

    dim: int
    dtype: Dtype = "float32"
    metric: Metric = "cosine"
    index: HNSW | None = field(default_factory=HNSW)
    sparse: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 1:
            raise InvalidInput(f"vector dimension {self.dim!r}: expected an integer >= 1")
        if not self.sparse and self.dim > MAX_DIM.get(self.dtype, 0):
            raise InvalidInput(
                f"vector({self.dim}, dtype={self.dtype!r}): float32, float16 or int8, at most 16,000 long"
            )
        if self.metric not in ("cosine", "l2", "ip"):
            raise InvalidInput(f"metric {self.metric!r}: expected 'cosine', 'l2' or 'ip'")
        if self.index is not None and self.index.quantize is not None and self.metric != "cosine":
            raise InvalidInput(
                f"HNSW(quantize={self.index.quantize!r}) is for metric='cosine': lengths may not fit 16 bits"
            )

    @property
    def quantized(self) -> bool:
        """Whether an index holds less of each number than is stored: of the direction alone, which 16 bits a number hold."""
        asked = self.index is not None and (self.index.quantize is not None or self.dim > MOST_WHOLE)
        return asked and self.dtype == "float32" and self.metric == "cosine"

    def hnsw(self) -> list[Any] | None:
        """JSON form of the index."""
        if self.index is None:
            return None
        return [self.index.m, self.index.ef_construction, *(["half"] if self.quantized else [])]


def vector(
    dim: int,
    *,
    dtype: Dtype = "float32",
    metric: Metric = "cosine",
    index: HNSW | None = HNSW(),
) -> VectorType:
    """Column type of dense vectors of ``dim`` numbers, searched by ``metric``; ``index=None`` always scans exactly."""
    return VectorType(dim, dtype, metric, index)


def sparse(dim: int, *, metric: Literal["cosine", "ip"] = "cosine") -> VectorType:
    """Column type of sparse vectors, given as ``(indices, values)`` with indices below ``dim``."""
    return VectorType(dim, "float32", metric, None, sparse=True)


class Sealing(Protocol):
    """How the values of an encrypted column become bytes and back."""

    def check(self, value: Any) -> bytes: ...
    def open(self, sealed: bytes) -> Any: ...
    def current(self, sealed: bytes) -> bool: ...
    def reseal(self, sealed: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, kind as it is stored, whether it may be null, its default, what a vector needs to know, and how
    it is encrypted."""

    name: str
    kind: Kind
    nullable: bool = False
    default: Any = MISSING
    auto: bool = False
    vector: VectorType | None = None
    encrypted: Kind | None = None
    """What its values are that are stored as encrypted bytes."""
    sealed: Sealing | None = field(default=None, compare=False, repr=False)

    def describe(self) -> str:
        """The type in words, for messages."""
        if self.vector is not None:
            return f"{'sparse' if self.vector.sparse else 'vector'}({self.vector.dim})"
        return self.kind if self.encrypted is None else f"encrypted {self.encrypted}"


@dataclass(frozen=True, slots=True)
class SparseIndex:
    """An ordered index of the rows whose column ``on`` is not null: what has been dealt with leaves it."""

    columns: tuple[str, ...]
    on: str
    unique: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """Rows that wait to be taken: those of a ``scope`` whose ``due`` moment has come and whose ``ends`` moment, if any, has
    not, in ascending ``order``. Taking a row may clear its due moment: ``kept`` are columns that still give its place."""

    scope: str
    due: str
    ends: str
    order: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """A table's declaration, checked. ``name`` is its public name; physical names fold case."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    text: Mapping[str, float] = field(default_factory=dict)
    ttl: str | None = None
    client_keys: ClientKeys = "if-missing"
    kept: Mapping[str, str] = field(default_factory=dict)
    """Columns that a replacement leaves as they were, unless the old row had expired by the moment in the other column."""
    sparse: tuple[SparseIndex, ...] = ()
    tell: tuple[str, ...] = ()
    """Inserts, and updates of these columns, wake processes that wait for changes, whether or not they are logged."""
    line: Line | None = None
    version: str | None = None
    """An integer column that counts a row's writes: a write that began from an older one is refused."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {column.name: column for column in self.columns})
        object.__setattr__(self, "names", tuple(column.name for column in self.columns))
        object.__setattr__(self, "vectors", tuple(c for c in self.columns if c.kind == "vector"))
        object.__setattr__(self, "sparse_vectors", tuple(c for c in self.columns if c.kind == "sparse"))

    by_name: Mapping[str, Column] = field(init=False, repr=False, compare=False)
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    vectors: tuple[Column, ...] = field(init=False, repr=False, compare=False)
    sparse_vectors: tuple[Column, ...] = field(init=False, repr=False, compare=False)

    @property
    def auto(self) -> Column | None:
        """The generated key column, if there is one."""
        return next((c for c in self.columns if c.auto), None)

    def column(self, name: object) -> Column:
        """The column called ``name``; else ``UnknownColumn`` listing those there are."""
        found = self.by_name.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownColumn(f"table {self.name!r} has no column {name!r}; it has {', '.join(self.names)}")
        return found

    def spec(self) -> dict[str, Any]:
        """JSON form of what the database must match."""
        return {
            "columns": [
                {
                    "name": c.name,
                    "kind": c.kind,
                    "nullable": c.nullable,
                    "auto": c.auto,
                    "dim": c.vector.dim if c.vector else None,
                    "dtype": c.vector.dtype if c.vector else None,
                    "metric": c.vector.metric if c.vector else None,
                    "hnsw": c.vector.hnsw() if c.vector else None,
                    **({"encrypted": c.encrypted} if c.encrypted else {}),
                }
                for c in self.columns
            ],
            "key": list(self.key),
            "indexes": [list(i) for i in self.built_indexes()],
            "unique": [list(u) for u in self.unique],
            "text": dict(self.text),
            "ttl": self.ttl,
            "sparse": [[list(i.columns), i.on, i.unique] for i in self.sparse],
            "tell": list(self.tell),
            "line": None
            if self.line is None
            else [
                *(getattr(self.line, n) for n in ("scope", "due", "ends")),
                list(self.line.order),
                list(self.line.kept),
            ],
        }

    def built_indexes(self) -> tuple[tuple[str, ...], ...]:
        """The declared ordered indexes that neither the key, a unique nor a longer index already covers."""
        wanted = [tuple(i) for i in dict.fromkeys(self.indexes)]
        covers = [self.key, *self.unique]
        return tuple(
            i
            for i in wanted
            if not any(c[: len(i)] == i for c in covers) and not any(o != i and o[: len(i)] == i for o in wanted)
        )


def _column_lists(value: Iterable[str | Iterable[str]], what: str) -> tuple[tuple[str, ...], ...]:
    if isinstance(value, str):
        raise InvalidInput(f"{what}={value!r}: expected a list of column names or of lists of them")
    return tuple((item,) if isinstance(item, str) else tuple(item) for item in value)


def build(
    name: str,
    columns: Iterable[Column],
    *,
    key: str | Iterable[str],
    indexes: Iterable[str | Iterable[str]] = (),
    unique: Iterable[str | Iterable[str]] = (),
    text: Mapping[str, float] | Iterable[str] | None = None,
    ttl: str | None = None,
    client_keys: ClientKeys = "if-missing",
    kept: Mapping[str, str] | None = None,
    sparse: Iterable[SparseIndex] = (),
    tell: Iterable[str] = (),
    line: Line | None = None,
    version: str | None = None,
    internal: bool = False,
) -> Schema:
    """A checked ``Schema``; raises ``InvalidName``, ``UnknownColumn`` or ``InvalidInput`` saying what is wrong."""
    if not internal:
        check_name(name, "table")
    columns = tuple(columns)
    keys = (key,) if isinstance(key, str) else tuple(key)
    if not keys or len(set(keys)) != len(keys):
        raise InvalidInput(f"table {name!r}: key={key!r} must name one or more different columns")
    folded: set[str] = set()
    for column in columns:
        check_name(column.name, f"table {name!r}: column")
        if column.name.lower() in folded:
            raise InvalidName(f"table {name!r}: two columns called {column.name!r} but for case")
        folded.add(column.name.lower())
    weights = {} if text is None else dict(text) if isinstance(text, Mapping) else dict.fromkeys(text, 1.0)
    schema = Schema(
        name,
        columns,
        keys,
        _column_lists(indexes, "indexes"),
        _column_lists(unique, "unique"),
        {c: float(w) for c, w in weights.items()},
        ttl,
        client_keys,
        kept or {},
        tuple(sparse),
        tuple(tell),
        line,
        version,
    )
    _check(schema)
    marked = tuple(replace(c, nullable=False) if c.name in keys else c for c in columns)
    if version is not None:
        marked = tuple(replace(c, default=0) if c.name == version else c for c in marked)
    return replace(schema, columns=marked)


def _check(schema: Schema) -> None:
    where = f"table {schema.name!r}"
    for used in (*schema.indexes, *schema.unique, schema.key):
        if not used or len(set(used)) != len(used):
            raise InvalidInput(f"{where}: an index or key {used!r} must name different columns")
        for name in used:
            if schema.column(name).kind in UNSORTABLE:
                raise InvalidInput(
                    f"{where}: column {name!r} is {schema.column(name).describe()} and cannot be a key or index"
                )
    autos = [c for c in schema.columns if c.auto]
    if len(autos) > 1 or any(c.name not in schema.key for c in autos):
        raise InvalidInput(f"{where}: only one column, and only one of the key, may be generated")
    if autos and autos[0].kind not in ("integer", "text", "uuid"):
        raise InvalidInput(f"{where}: generated key {autos[0].name!r} must be an integer, text or UUID column")
    if schema.client_keys not in ("if-missing", "never", "always"):
        raise InvalidInput(f"{where}: client_keys={schema.client_keys!r}: 'if-missing', 'never' or 'always'")
    for name, weight in schema.text.items():
        if schema.column(name).kind != "text":
            raise InvalidInput(f"{where}: text index on {name!r}, which is {schema.column(name).describe()}, not text")
        if not 0 < weight <= 100:
            raise InvalidInput(f"{where}: text weight {weight} of {name!r}: expected more than 0, at most 100")
    if len(schema.text) > 8:
        raise InvalidInput(f"{where}: a text index takes at most 8 columns")
    if schema.ttl is not None and schema.column(schema.ttl).kind != "timestamp":
        raise InvalidInput(f"{where}: ttl column {schema.ttl!r} must be a timestamp")
    if schema.version is not None:
        counted = schema.column(schema.version)
        if counted.default not in (MISSING, None, 0):
            raise InvalidInput(f"{where}: version column {schema.version!r} must begin at 0, not {counted.default!r}")
        if counted.kind != "integer" or counted.nullable or counted.name in {*schema.key, *sum(schema.unique, ())}:
            raise InvalidInput(
                f"{where}: version column {schema.version!r} must be an integer, never null, outside the key and unique indexes"
            )


def from_spec(name: str, spec: Mapping[str, Any]) -> Schema:
    """The schema that a specification describes; defaults and constraints of the declaration are not in it."""
    columns = []
    for c in spec["columns"]:
        kind = None
        if c["dim"] is not None:
            index = (
                None
                if c["hnsw"] is None
                else HNSW(m=c["hnsw"][0], ef_construction=c["hnsw"][1], quantize=(c["hnsw"][2:] or [None])[0])
            )
            kind = VectorType(c["dim"], c["dtype"], c["metric"], index, sparse=c["kind"] == "sparse")
        encrypted = c.get("encrypted")
        columns.append(Column(c["name"], c["kind"], c["nullable"], MISSING, c["auto"], kind, encrypted))
    line = spec.get("line")
    return build(
        name,
        columns,
        key=spec["key"],
        indexes=spec["indexes"],
        unique=spec["unique"],
        text=spec["text"] or None,
        ttl=spec["ttl"],
        sparse=[SparseIndex(tuple(i[0]), i[1], i[2]) for i in spec.get("sparse", ())],
        tell=spec.get("tell", ()),
        line=None if line is None else Line(line[0], line[1], line[2], tuple(line[3]), tuple(line[4])),
        internal=True,
    )
