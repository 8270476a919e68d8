"""Versions of an Iceberg table without a catalog: a commit writes the next metadata file, and whoever names it decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyiceberg.catalog import MetastoreCatalog
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.io import load_file_io
from pyiceberg.io.fileformat import FileFormatFactory
from pyiceberg.io.pyarrow import _dataframe_to_data_files, _to_requested_schema, pyarrow_to_schema
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import assign_fresh_schema_ids
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import CommitTableResponse, Table, Transaction
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadata, new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import TableRequirement, TableUpdate

IDENTIFIER = ("howdah", "base")
GROUP = 8 * 2**20
"""Bytes of rows in a group, as they are in memory."""
FIRST_FIELD = 1000
"""Where the ids of partition fields begin, by Iceberg's specification."""


class Versions(NoopCatalog, MetastoreCatalog):
    """Writes metadata files, and remembers none."""

    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        """Write the next metadata file of a table."""
        staged = self._update_and_stage_table(table, table.name(), requirements, updates)
        if staged.metadata == table.metadata:
            return CommitTableResponse(metadata=table.metadata, metadata_location=table.metadata_location)  # type: ignore[call-arg]  # by name, as there
        self._write_metadata(staged.metadata, staged.io, staged.metadata_location)
        return CommitTableResponse(metadata=staged.metadata, metadata_location=staged.metadata_location)  # type: ignore[call-arg]  # by name, as there

    def create(self, location: str, schema: Any, fields: Any, properties: dict[str, str]) -> Table:
        """A new table of an Arrow schema; ``fields`` of its partitions are (column, name, transform)."""
        shape = assign_fresh_schema_ids(self._convert_schema_if_needed(_uuids(schema)))
        spec = PartitionSpec(
            *(
                PartitionField(shape.find_field(column).field_id, FIRST_FIELD + number, transform, name)
                for number, (column, name, transform) in enumerate(fields)
            )
        )
        metadata = new_table_metadata(shape, spec, UNSORTED_SORT_ORDER, location, properties)
        place = load_location_provider(location, properties).new_table_metadata_file_location()
        io = self._load_file_io(properties, place)
        self._write_metadata(metadata, io, place)
        return Table(IDENTIFIER, metadata, place, io, self)

    def table(self, metadata: str) -> Table:
        """The table of a metadata file."""
        io = load_file_io(self.properties, metadata)
        found = FromInputFile.table_metadata(io.new_input(metadata))
        return Table(IDENTIFIER, found, metadata, self._load_file_io(found.properties, metadata), self)


class Changing(Transaction):
    """A transaction that applies its changes to the metadata once, and not each time they are looked at."""

    _applied: tuple[Any, TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        """The metadata with the changes so far."""
        if self._applied is None or self._applied[0] is not self._updates:
            self._applied = (self._updates, super().table_metadata)
        return self._applied[1]


def replace(table: Table, parts: Iterable[tuple[Sequence[Any], Any]]) -> None:
    """Put rows (Arrow; ``None`` for none) in the place of data files, part after part, in one snapshot."""
    old: list[Any] = []
    fresh: list[Any] = []
    with Changing(table) as change:
        for files, rows in parts:
            old += files
            if rows is not None and rows.num_rows:
                about = _grouped(change.table_metadata, rows)
                fresh += _dataframe_to_data_files(about, rows.cast(_uuids(rows.schema)), table.io)
        swap(change, old, fresh)


def joined(table: Table, old: Sequence[Any], pieces: Iterator[Any]) -> None:
    """Put one file with the rows of others (Arrow), which come piece by piece, in the place of these, all of one partition."""
    with Changing(table) as change:
        about = change.table_metadata
        model = FileFormatFactory.get(FileFormat.PARQUET)
        path = f"{old[0].file_path.rpartition('/')[0]}/{uuid4()}.parquet"
        out = table.io.new_output(path)
        first = next(pieces)
        writer = model.create_writer(out, about.schema(), _grouped(about, first).properties)
        with writer:
            for piece in chain([first], pieces):
                writer.write(_requested(about.schema(), piece.cast(_uuids(piece.schema)), model))
        fresh = DataFile.from_args(
            content=DataFileContent.DATA, file_path=path, file_format=FileFormat.PARQUET, partition=old[0].partition,
            file_size_in_bytes=len(out), sort_order_id=None, spec_id=old[0].spec_id, equality_ids=None, key_metadata=None,
            **writer.result().to_serialized_dict(),
        )  # fmt: skip
        swap(change, old, [fresh])


def _requested(schema: Any, rows: Any, model: Any) -> Any:
    """Rows as a file has them, with the ids of their columns."""
    shape = pyarrow_to_schema(rows.schema, name_mapping=schema.name_mapping)
    return pa.Table.from_batches(
        [
            _to_requested_schema(schema, shape, batch, include_field_ids=True, format_model=model)
            for batch in rows.to_batches()
        ]
    )


def _grouped(about: TableMetadata, rows: Any) -> TableMetadata:
    """A table's metadata with groups of rows that are not too large in memory: they are read whole."""
    name = "write.parquet.row-group-limit"
    most = max(1, GROUP * rows.num_rows // max(1, rows.nbytes))
    return about.model_copy(
        update={"properties": {**about.properties, name: str(min(most, int(about.properties[name])))}}
    )


def evolve(table: Table, steps: Sequence[tuple[str, str, Any]]) -> None:
    """Change the columns: ``("add", name, schema)`` and ``("widen", name, type)`` of Arrow, ``("rename", name, new)``,
    ``("drop", name, None)``."""
    with Changing(table) as change, change.update_schema() as update:
        for kind, name, what in steps:
            if kind == "drop":
                update.delete_column((name,))
            elif kind == "rename":
                update.rename_column((name,), what)
            else:
                shape = _uuids(what if kind == "add" else pa.schema([pa.field(name, what)]))
                made = table.catalog._convert_schema_if_needed(shape).fields[0]
                if kind == "add":
                    update.add_column((name,), made.field_type, made.doc)
                else:
                    update.update_column((name,), made.field_type)


def _uuids(schema: Any) -> Any:
    """Columns of Arrow as files have them: bytes of that length are UUIDs."""
    fixed = pa.types.is_fixed_size_binary
    return pa.schema([f.with_type(pa.uuid()) if fixed(f.type) else f for f in schema])


def swap(change: Transaction, old: Sequence[Any], fresh: Sequence[Any]) -> None:
    """Name other data files in the place of some."""
    snapshot = change.update_snapshot()
    with snapshot.overwrite() if old else snapshot.merge_append() as made:
        for file in old:
            made.delete_data_file(file)
        for file in fresh:
            made.append_data_file(file)
