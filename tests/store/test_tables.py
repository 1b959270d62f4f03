"""The tables as the program declares them, and as the migrations create them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from sqlalchemy import Table, create_engine, inspect
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Inspector

from bench.core.cells import Cell
from bench.store import Store
from bench.store.tables import CELLS, METADATA


def described(table: Table) -> dict[str, tuple[str, bool, bool]]:
    dialect = sqlite.dialect()
    return {
        column.name: (
            column.type.compile(dialect),
            bool(column.nullable) and not column.primary_key,
            column.server_default is not None,
        )
        for column in table.columns
    }


def found(inspector: Inspector, table: str) -> dict[str, tuple[str, bool, bool]]:
    keys = inspector.get_pk_constraint(table)["constrained_columns"]
    return {
        column["name"]: (
            column["type"].compile(sqlite.dialect()),
            column["nullable"] and column["name"] not in keys,
            column["default"] is not None,
        )
        for column in inspector.get_columns(table)
    }


def test_the_migrations_create_the_declared_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    Store.open(url).close()
    engine = create_engine(url)
    inspector = inspect(engine)
    tables = set(inspector.get_table_names()) - {"alembic_version"}
    assert tables == set(METADATA.tables)
    for name in sorted(tables):
        assert found(inspector, name) == described(METADATA.tables[name]), name
        indexes = {(i["name"], tuple(i["column_names"])) for i in inspector.get_indexes(name)}
        declared = METADATA.tables[name].indexes
        assert indexes == {(i.name, tuple(i.columns.keys())) for i in declared}, name
    engine.dispose()


def test_every_field_of_a_cell_is_a_column_that_must_be_given() -> None:
    for field in fields(Cell):
        assert not CELLS.c[field.name].nullable, field.name
