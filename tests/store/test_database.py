"""Opening a database that is new, current, older, newer, damaged or no database."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, text

from bench.cli import main
from bench.core.cells import CellState
from bench.core.errors import BenchError, UnavailableError
from bench.core.outcomes import Chunk
from bench.store import PlannedCell, Store, migrate
from bench.store.database import open_engine, resolve_url, url_text
from bench.store.tables import METADATA, REVISIONS
from tests.store.workers import keep_tiny_examples, tiny_cell, tiny_outcomes

NEWEST = REVISIONS[-1]
NEXT = f"{int(NEWEST) + 1:04d}"
LATER = f'''
"""Give cells a note: the table is moved, copied and renamed."""

import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{NEWEST}"


def upgrade() -> None:
    with op.batch_alter_table("cells", recreate="always") as cells:
        cells.add_column(sa.Column("note", sa.Text, nullable=False, server_default="none"))
    op.execute("UPDATE cells SET note = attack")
    op.create_table("notes", sa.Column("key", sa.Text, primary_key=True))
'''


def robust(store: Store) -> int:
    """The number of unbroken items of the first cell."""
    figures = store.cells()[0].figures
    assert figures is not None
    return figures.robust


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bench.db"


@pytest.fixture
def filled(path: Path) -> Path:
    """A database with one finished cell."""
    with Store.open(f"sqlite:///{path}") as store:
        keep_tiny_examples(store)
        cell = tiny_cell(items=3)
        store.plan([PlannedCell(cell)])
        lease = store.lease(cell.key, "owner")
        assert lease is not None
        store.record(lease, Chunk(tiny_outcomes([0, 1, 2]), 0.0))
        store.finish(lease)
    return path


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The migrations of a newer version."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, folder)
    (folder / "versions" / f"{NEXT}_note.py").write_text(LATER)
    return folder


def on_disk(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Schema and rows of a database, as plain values."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        schema = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        rows = {
            name: connection.execute(f"SELECT * FROM {name}").fetchall()
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        }
    return {"schema": schema, **rows}


def run(code: str, *arguments: str) -> str:
    told = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return told.stdout.strip()


def test_the_migrations_lead_to_the_tables_of_the_program(filled: Path) -> None:
    engine = open_engine(resolve_url(f"sqlite:///{filled}"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_a_database_without_machine_classes_is_upgraded_with_its_outcomes_and_seals(
    filled: Path,
) -> None:
    """The tables of revision 0004, as its migration made them."""
    with closing(sqlite3.connect(filled)) as connection:
        connection.executescript(
            "drop table weights; drop table replications; drop table seals; drop table points;"
            " drop table fits;"
            " drop index machines_of_cells; alter table chunks drop column machine;"
            ' alter table examples drop column "order";'
            " update alembic_version set version_num = '0004';"
        )
        connection.execute("insert into examples values ('e', 'digits', 0, x'', '[]', '[]')")
        connection.commit()
    before = on_disk(filled)["chunks"]
    with Store.open(f"sqlite:///{filled}") as store:
        assert store.examples("e").order == "balanced"
        (row,) = store.cells()
        assert (row.state, robust(store)) == (CellState.DONE, 2)
        assert store.machines([row.key]) == {}
        found = store.outcomes(row.key)
        assert np.isnan(found.loss).all() and set(found.claimed.tolist()) == {-1}
        assert store.check() == []
    assert [line[:-1] for line in on_disk(filled)["chunks"]] == before
    assert (filled.parent / "bench.db.0004.backup").exists()


def test_the_machine_class_is_read_without_the_outcomes(filled: Path) -> None:
    """The index holds it, so that no chunk of outcomes is read for it."""
    with Store.open(f"sqlite:///{filled}") as store, store.reading() as connection:
        plan = connection.exec_driver_sql(
            "explain query plan select distinct cell, machine from chunks where cell in ('a')"
            " and machine != ''"
        ).all()
    assert any("COVERING INDEX machines_of_cells" in str(step) for step in plan), plan


def test_the_program_knows_every_revision_it_ships() -> None:
    scripts = ScriptDirectory(str(migrate.MIGRATIONS)).walk_revisions()
    assert tuple(script.revision for script in scripts)[::-1] == REVISIONS


def test_the_store_loads_without_torch_and_opens_without_alembic(filled: Path) -> None:
    code = (
        "import sys; from bench.store import Store; Store.open(sys.argv[1]).close();"
        "Store.open(sys.argv[1], read_only=True).close();"
        "print({'torch', 'streamlit', 'scipy', 'alembic', 'sklearn'} & set(sys.modules))"
    )
    assert run(code, f"sqlite:///{filled}") == "set()"


def test_every_connection_is_durable(filled: Path) -> None:
    with Store.open(f"sqlite:///{filled}") as store, store._engine.connect() as connection:
        told = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert told == ["wal", 2, 1, 30000]


def test_the_url_comes_from_the_environment_or_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DB", raising=False)
    Store.open().close()
    assert (tmp_path / "bench.db").exists()
    monkeypatch.setenv("BENCH_DB", f"sqlite:///{tmp_path / 'other.db'}")
    Store.open().close()
    assert (tmp_path / "other.db").exists()


def test_the_file_stays_the_same_when_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open("sqlite:///bench.db") as store:
        monkeypatch.chdir("/")
        store.plan([PlannedCell(tiny_cell())])
        assert store.artifacts == tmp_path / "artifacts"
        assert len(store.cells()) == 1


def test_several_processes_may_create_one_database_at_once(path: Path) -> None:
    code = "import sys; from bench.store import Store; Store.open(sys.argv[1]).close()"
    command = [sys.executable, "-c", code, f"sqlite:///{path}"]
    racing = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    told = [(process.communicate()[1].decode(), process.returncode) for process in racing]
    assert told == [("", 0)] * 4
    assert not list(path.parent.glob("*.backup"))


PATHS = (
    "100%20.db", "what?.db", "a#b.db", "with space.db", "größe 日本.db", "a&mode=ro.db", "%.db",
    "sub/x:y@z.db", "sqlite:", "plus+;=.db",
)  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_taken_character_by_character(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with Store.open(name) as store:
        store.plan([PlannedCell(tiny_cell())])
    assert (tmp_path / name).is_file()
    assert {p.name for p in tmp_path.iterdir()} <= {"sub", name}
    for read_only in (True, False):
        with Store.open(str(tmp_path / name), read_only=read_only) as store:
            assert len(store.cells()) == 1 and store.url == str(tmp_path / name)


def test_a_path_begins_at_the_home_folder_after_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BENCH_DB", "~/bench %41.db")
    Store.open().close()
    assert (tmp_path / "bench %41.db").is_file()


# Refusals, each with a message.


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://h:abc/x", "is not a database URL"),
        (":memory:", "in memory"),
        ("a\0b", "null character"),
        ("a:b@c", "looks like a server"),
        ("mysql://localhost/x", "neither a plain sqlite:/// nor a postgresql:// URL"),
        ("sqlite:///bench.db?mode=ro", "neither a plain"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_a_url_that_names_no_database_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        Store.open(url)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for below in ("file/bench.db", "missing/bench.db"):
        with pytest.raises(
            UnavailableError, match=r"bench\.db: the file cannot be opened: give a path"
        ):
            Store.open(f"sqlite:///{tmp_path / below}")


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"a picture of a cat" * 100)
    with pytest.raises(UnavailableError, match="the file is not a database"):
        Store.open(f"sqlite:///{path}")
    assert path.read_bytes() == b"a picture of a cat" * 100


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (cake TEXT)")
    for read_only in (False, True):
        with pytest.raises(UnavailableError, match=r"another program .it has a table 'recipes'"):
            Store.open(f"sqlite:///{path}", read_only=read_only)
    assert set(on_disk(path)) == {"schema", "recipes"}


def test_reading_a_missing_database_says_which_command_fills_it(path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no database at .*`bench run` fills one"):
        Store.open(f"sqlite:///{path}", read_only=True)
    assert not path.exists()
    path.touch()
    with pytest.raises(UnavailableError, match=r"no database at .*`bench run` fills one"):
        Store.open(f"sqlite:///{path}", read_only=True)


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    with pytest.raises(
        UnavailableError, match=r"postgresql\+psycopg://me:\*\*\*@.*: the server does"
    ):
        Store.open("postgresql://me:secret@/none?host=/nowhere")


SECRET_URLS = (
    "postgres://u:s3cret@host",
    "mysql://u:s3cret@host/name",
    "oracle+cx://u:s3cret@host/name",
    "postgresql//u:s3cret@host",
    "postgresql://u:s3cret@host:port/name",
    "postgresql://u:s3cr@s3cret@host:99x/name",
    "postgresql://u@host:s3cret",
    "mysql://host/name?password=s3cret&user=u",
    "sqlite:///file.db?key=s3cret",
    "sqlite:///postgresql:u:s3cret@host/name",
    "u:s3cret@host",
)


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_refused_url_does_not_show_its_password(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchError) as error:
        Store.open(url)
    assert "s3cret" not in "".join(traceback.format_exception(error.value))
    assert "s3cret" not in str(error.value) and "***" in str(error.value)
    monkeypatch.setenv("BENCH_DB", url)
    monkeypatch.setattr("sys.argv", ["bench", "report"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr()
    assert "s3cret" not in shown.out + shown.err and "***" in shown.err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:s3cret@host/name", "postgresql+psycopg://u:***@host/name"),
        ("postgresql+foo://u:s3cret@host/name", "postgresql+psycopg://u:***@host/name"),
        (
            "postgresql://u@host/name?password=s3cret&sslmode=require&pasword=s3cret",
            "postgresql+psycopg://u@host/name?password=***&sslmode=require&pasword=***",
        ),
        ("postgresql://u@host:5432/name", "postgresql+psycopg://u@host:5432/name"),
    ],
)
def test_a_server_is_named_without_its_password(url: str, shown: str) -> None:
    found = url_text(resolve_url(url))
    assert "s3cret" not in found
    assert sorted(re.split("[?&]", found)) == sorted(re.split("[?&]", shown))


def test_a_reader_cannot_write(filled: Path) -> None:
    with Store.open(f"sqlite:///{filled}", read_only=True) as store:
        with store._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 1
        assert robust(store) == 2
        assert len(store.outcomes(store.cells()[0].key).item) == 3
        with pytest.raises(UnavailableError, match="opened for reading only"):
            store.plan([PlannedCell(tiny_cell(2))])
        with pytest.raises(UnavailableError, match="opened for reading only"):
            store.upgrade()
        with (
            pytest.raises(Exception, match="attempt to write a readonly database"),
            store._engine.begin() as connection,
        ):
            connection.execute(text("DELETE FROM chunks"))


def test_a_reader_reads_during_a_writers_transaction(filled: Path) -> None:
    url = f"sqlite:///{filled}"
    with Store.open(url) as writer, Store.open(url, read_only=True) as reader:
        with writer._engine.begin() as connection:
            connection.execute(text("UPDATE cells SET robust = 77"))
            assert robust(reader) == 2
        assert robust(reader) == 77


@pytest.mark.skipif(
    not hasattr(os, "setuid") or os.geteuid() != 0, reason="only root can give up its rights"
)
@pytest.mark.parametrize("writing", [False, True])
def test_a_reader_needs_no_permission_to_write(filled: Path, writing: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        shutil.copy(filled, Path(folder) / "bench.db")
        url = f"sqlite:///{folder}/bench.db"
        with Store.open(url) if writing else nullcontext() as writer:
            if writer is not None:
                writer.plan([PlannedCell(tiny_cell(2))])
            command = [sys.executable, "-m", "tests.store.workers", "read", url, ""]
            told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "2" if writing else "1"]


def test_a_locked_database_is_named(filled: Path) -> None:
    url = f"sqlite:///{filled}"
    with Store.open(url) as first, Store.open(url) as second:

        @event.listens_for(second._engine, "checkout")
        def _impatient(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute("PRAGMA busy_timeout=10")

        with (
            first._engine.begin(),
            pytest.raises(UnavailableError, match="another process held it"),
        ):
            second.plan([PlannedCell(tiny_cell(2))])
        second.plan([PlannedCell(tiny_cell(2))])


def test_a_full_disk_loses_no_committed_outcome_and_the_cell_can_go_on(filled: Path) -> None:
    with Store.open(f"sqlite:///{filled}") as store:
        cell = tiny_cell(1, items=64_000)
        store.plan([PlannedCell(cell)])
        lease = store.lease(cell.key, "owner")
        assert lease is not None
        with store._reader.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 8}")
        acknowledged = 0
        with pytest.raises(UnavailableError, match="the disk is full: recorded outcomes are safe"):
            for start in range(0, 64_000, 640):
                part = tiny_outcomes(list(range(start, start + 640)))
                store.record(lease, Chunk(part, 0.0))
                acknowledged += 640
        assert 0 < acknowledged < 64_000
        assert store.finished_items(cell.key).tolist() == list(range(acknowledged))
        with store._reader.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        part = tiny_outcomes(list(range(acknowledged, acknowledged + 640)))
        store.record(lease, Chunk(part, 0.0))
        assert store.check() == []


# Revisions.


def test_a_newer_database_is_refused_and_left_alone(filled: Path, newer: Path) -> None:
    url = f"sqlite:///{filled}"
    migrate.upgrade(resolve_url(url), migrations=newer, known=(*REVISIONS, NEXT))
    before = on_disk(filled)
    for read_only in (False, True):
        with pytest.raises(
            UnavailableError, match=f"revision {NEXT}, this program knows up to {NEWEST}"
        ):
            Store.open(url, read_only=read_only)
    assert on_disk(filled) == before


def test_an_older_database_is_backed_up_and_then_upgraded(filled: Path, newer: Path) -> None:
    before = on_disk(filled)
    backup = migrate.upgrade(
        resolve_url(f"sqlite:///{filled}"), migrations=newer, known=(*REVISIONS, NEXT)
    )
    assert backup == filled.with_name(f"bench.db.{NEWEST}.backup")
    assert on_disk(backup) == before
    after = on_disk(filled)
    assert after["alembic_version"] == [(NEXT,)]
    assert after["chunks"] == before["chunks"]
    assert [row[:-1] for row in after["cells"]] == before["cells"]
    assert [row[-1] for row in after["cells"]] == ["a0"]


def test_an_older_database_is_not_changed_by_a_reader(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.store.store.REVISIONS", (*REVISIONS, NEXT))
    monkeypatch.setattr("bench.store.migrate.refuse_newer", lambda *_: None)
    before = on_disk(filled)
    with pytest.raises(
        UnavailableError, match=rf"has revision {NEWEST}, .* run `bench db upgrade`"
    ):
        Store.open(f"sqlite:///{filled}", read_only=True)
    assert on_disk(filled) == before


def test_upgrading_a_current_database_does_nothing(filled: Path) -> None:
    before = on_disk(filled)
    with Store.open(f"sqlite:///{filled}") as store:
        assert store.upgrade() is None
    assert on_disk(filled) == before
    assert not list(filled.parent.glob("*.backup"))


def test_a_migration_that_leaves_dangling_rows_changes_nothing(filled: Path, newer: Path) -> None:
    (newer / "versions" / f"{NEXT}_note.py").write_text(
        LATER.partition("    with op")[0] + '    op.execute("DELETE FROM cells")\n'
    )
    before = on_disk(filled)
    with pytest.raises(UnavailableError, match="a row of 'chunks' that refers to a missing row"):
        migrate.upgrade(
            resolve_url(f"sqlite:///{filled}"), migrations=newer, known=(*REVISIONS, NEXT)
        )
    assert on_disk(filled) == before


# Backup.


def test_a_backup_is_a_whole_database_and_never_replaces_a_file(filled: Path) -> None:
    target = filled.with_name("copy.db")
    with Store.open(f"sqlite:///{filled}") as store:
        store.backup(target)
        with pytest.raises(UnavailableError, match="exists already"):
            store.backup(target)
        with pytest.raises(UnavailableError, match="no backup of"):
            store.backup(filled / "below" / "copy.db")
        with Store.open(f"sqlite:///{target}") as copy:
            assert copy.cells() == store.cells()
            assert copy.check() == []


def test_after_a_close_the_results_are_in_the_file_itself(filled: Path) -> None:
    """Even while another process reads, which keeps the files beside it."""
    url = f"sqlite:///{filled}"
    with Store.open(url, read_only=True) as reader, reader._engine.connect() as reading:
        reading.exec_driver_sql("SELECT count(*) FROM cells").scalar_one()
        reading.rollback()
        with Store.open(url) as writer:
            writer.plan([PlannedCell(tiny_cell(7))])
        copy = filled.with_name("copy.db")
        shutil.copy(filled, copy)
    with Store.open(f"sqlite:///{copy}", read_only=True) as store:
        assert {row.cell.attack for row in store.cells()} == {"a0", "a7"}


def test_a_close_does_not_wait_for_a_reader(filled: Path) -> None:
    url = f"sqlite:///{filled}"
    with Store.open(url, read_only=True) as reader, reader._reader.begin() as reading:
        reading.exec_driver_sql("SELECT count(*) FROM cells").scalar_one()
        with Store.open(url) as writer:
            writer.plan([PlannedCell(tiny_cell(7))])
            began = time.monotonic()
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("copy", [shutil.copy, shutil.copyfile, shutil.copy2])
def test_a_copy_without_tables_says_how_to_copy(
    path: Path, tmp_path: Path, copy: Callable[[Path, Path], object]
) -> None:
    target = tmp_path / "copy.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.plan([PlannedCell(tiny_cell())])
        copy(path, target)
        for name in ("bench.db-wal", "bench.db-shm"):
            assert (tmp_path / name).exists()
        with pytest.raises(UnavailableError, match=r"`bench db backup` copies a database in use"):
            Store.open(f"sqlite:///{target}", read_only=True)


def test_the_backup_of_a_server_is_the_servers_own(server: str, tmp_path: Path) -> None:
    with (
        Store.open(server) as store,
        pytest.raises(UnavailableError, match=r"pg_dump --format=custom --file=\S+b\.db 'postgres"),
    ):
        store.backup(tmp_path / "b.db")
