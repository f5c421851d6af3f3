"""Sessions: every store is read through one file of views and macros, made once for a version of headwater."""

from __future__ import annotations

import shutil
import subprocess
import sys

import duckdb
import pyarrow as pa
import pytest

from storage import database
from storage.database import catalog_statements, installed_relations, session
from storage.errors import StoreError
from storage.settings import settings
from storage.store import create_store, open_store
from storage.tables import write_part

COUNT = "import sys, storage.database as d, storage.store as s\n" + (
    "with d.session(s.open_store(sys.argv[1])) as c: print(c.execute('select sum(document_frequency) from terms')"
    ".fetchall()[0][0])"
)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A scratch directory in which nothing is yet."""
    monkeypatch.setenv("HEADWATER_SCRATCH", str(tmp_path / "scratch"))
    settings.cache_clear()
    yield tmp_path / "scratch"
    settings.cache_clear()


def store_of(path, frequency: int):
    store = create_store(path)
    write_part(store, "terms", "p0", columns={"term_id": [1], "document_frequency": [frequency]})
    return store


def asked(connection) -> int:
    return connection.execute("select sum(document_frequency) from terms").fetchall()[0][0]


def kept(scratch) -> list[str]:
    return sorted(path.name for path in (scratch / "sessions").iterdir())


def test_sessions_of_two_stores_at_once_see_each_its_own(tmp_path, scratch):
    one, other = store_of(tmp_path / "o'ne, 1", 3), store_of(tmp_path / "other", 50)
    with session(one) as first, session(other) as second, session(one) as third:
        assert [asked(connection) for connection in (first, second, third)] == [3, 50, 3]
    assert len(kept(scratch)) == 1


def test_a_store_that_moved_and_another_one_in_its_place_are_told_apart(tmp_path):
    with session(store_of(tmp_path / "s", 3)) as connection:
        assert asked(connection) == 3
    shutil.move(tmp_path / "s", tmp_path / "elsewhere")
    store_of(tmp_path / "s", 50)
    for name, expected in (("elsewhere", 3), ("s", 50)):
        with session(open_store(tmp_path / name)) as connection:
            assert asked(connection) == expected


def test_new_sql_counts_for_sessions_from_then_on(tmp_path, scratch, monkeypatch):
    store = store_of(tmp_path / "s", 3)
    as_it_was = database.statement

    def changed(name: str) -> str:
        return as_it_was(name).replace("sum(document_frequency)", "10 * sum(document_frequency)")

    with session(store) as before:
        monkeypatch.setattr(database, "statement", changed)
        with session(store) as after:
            assert (asked(before), asked(after)) == (3, 30)
    assert len(kept(scratch)) == 2


def test_new_columns_count_for_sessions_from_then_on(scratch, monkeypatch):
    before, as_they_were = installed_relations(), database.empty_relations
    terms = pa.schema([("term_id", pa.int64()), ("document_frequency", pa.int64())])
    changed = lambda store: as_they_were(store) | {store.relation("terms") / "schema.parquet": terms}  # noqa: E731
    monkeypatch.setattr(database, "empty_relations", changed)
    with duckdb.connect(str(installed_relations())) as connection:
        kind = "select data_type from duckdb_columns() where table_name = 'terms' and column_name = 'term_id'"
        assert connection.execute(kind).fetchall() == [("BIGINT",)] * 2
    assert len(kept(scratch)) == 2
    monkeypatch.setattr(database, "empty_relations", lambda store: {})
    with pytest.raises(StoreError, match="No files found"):
        installed_relations()
    assert len(kept(scratch)) == 2  # what was broken off leaves nothing
    assert before.exists()


def test_processes_that_are_the_first_at_once_make_one_file(tmp_path, scratch):
    store = store_of(tmp_path / "s", 3)
    started = [
        subprocess.Popen([sys.executable, "-c", COUNT, str(store.root)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["3"] * 2
    assert len(kept(scratch)) == 1


def test_a_session_changes_nothing_in_its_store(tmp_path, scratch):
    store = store_of(tmp_path / "s", 3)
    before = {path: path.stat().st_mtime_ns for path in (store.root, *store.root.rglob("*"))}
    with session(store) as connection:
        assert asked(connection) == 3
    assert {path: path.stat().st_mtime_ns for path in (store.root, *store.root.rglob("*"))} == before


def test_a_store_on_a_medium_that_is_read_only_is_read(tmp_path, scratch):
    medium = tmp_path / "medium"
    medium.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(medium)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted")
    try:
        store_of(medium / "s", 3)
        subprocess.run(["mount", "-o", "remount,ro", str(medium)], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (medium / "s" / "x").touch()
        with session(open_store(medium / "s")) as connection:
            assert asked(connection) == 3
    finally:
        subprocess.run(["umount", "-l", str(medium)], check=True)


def test_where_the_views_cannot_be_kept_the_error_names_the_place(tmp_path, scratch):
    store = store_of(tmp_path / "s", 3)
    scratch.write_text("a file")
    with pytest.raises(StoreError, match=r"scratch.*HEADWATER_SCRATCH"), session(store):
        pass


def test_what_a_session_names_for_itself_stays_its_own(tmp_path):
    store = store_of(tmp_path / "s", 3)
    write_part(store, "terms", "p1", columns={"term_id": [1], "document_frequency": [50]})
    with session(store) as one, session(store) as other:
        database.part_view(one, store, "mine", "terms", "p0")
        database.part_view(other, store, "mine", "terms", "p1")
        assert [c.execute("select document_frequency from mine").fetchall() for c in (one, other)] == [[(3,)], [(50,)]]
    with session(store) as third, pytest.raises(duckdb.CatalogException, match="mine"):
        third.execute("from mine")


def test_a_session_answers_as_a_connection_in_which_all_was_made_anew(tmp_path):
    store = store_of(tmp_path / "o'ne, 1", 3)
    columns = "select table_schema, table_name, column_name, data_type from information_schema.columns"
    with duckdb.connect() as made, session(store) as connection:
        for text in catalog_statements(database.quoted(str(store.root))):
            made.execute(text)
        made_anew = made.execute(f"{columns} where table_catalog = 'memory' order by all").fetchall()
        assert len(made_anew) > 300
        assert connection.execute(f"{columns} where table_catalog = 'relations' order by all").fetchall() == made_anew
