from __future__ import annotations

import shutil

import duckdb
import pytest

from storage.catalog import build_catalog, run_user_sql
from storage.errors import InputError
from storage.store import create_store, open_store
from storage.tables import write_part


@pytest.fixture
def store(tmp_path):
    store = create_store(tmp_path / "s")
    write_part(store, "terms", "p0", columns={"term_id": [1, 2], "document_frequency": [3, 4]})
    write_part(store, "terms", "p1", columns={"term_id": [2], "document_frequency": [10]})
    return store


def test_terms_are_summed_over_shards(store):
    assert run_user_sql(store, "from terms order by term_id")[1] == [(1, 3), (2, 14)]


def test_the_catalog_opens_in_a_plain_duckdb_client(store):
    build_catalog(store)
    connection = duckdb.connect(str(store.catalog), read_only=True)
    assert connection.execute("select sum(document_frequency) from terms").fetchall() == [(17,)]
    connection.close()


def test_the_catalog_has_a_storage_version_that_duckdb_1_reads(store):
    build_catalog(store)
    # Bytes 12 to 19 of a DuckDB file hold the storage version; 64 is that of v0.10 to v1.1, 68 the last of 1.x.
    assert 64 <= int.from_bytes(store.catalog.read_bytes()[12:20], "little") <= 68


def test_a_moved_store_still_answers(store, tmp_path):
    build_catalog(store)
    shutil.move(store.root, tmp_path / "elsewhere")
    assert run_user_sql(open_store(tmp_path / "elsewhere"), "select count(*) from terms")[1] == [(2,)]


def test_a_reader_with_the_old_catalog_open_is_not_disturbed(store):
    build_catalog(store)
    reader = duckdb.connect(str(store.catalog), read_only=True)
    build_catalog(store)
    assert reader.execute("select count(*) from terms").fetchall() == [(2,)]
    reader.close()


def test_rows_of_a_run_stay_unseen_until_the_run_is_complete(store):
    rows = {"run_id": ["r1"], "query_id": ["q"], "sequence_id": [1], "filter": ["bm25"], "filter_score": [1.0],
            "filter_rank": [1]}  # fmt: skip
    write_part(store, "candidates", "r1", columns=rows)
    assert run_user_sql(store, "select count(*) from candidates")[1] == [(0,)]
    names = store.relation("runs") / "schema.parquet"
    import pyarrow.parquet as pq

    empty = {name: [None] for name in pq.read_schema(names).names}
    write_part(store, "runs", "r1", columns={**empty, "run_id": ["r1"]})
    assert run_user_sql(store, "select count(*) from candidates")[1] == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "select * from read_csv('/etc/hostname')",
        "copy (select 1) to '/tmp/escaped.csv'",
        "create table t as select 1",
        "attach '/tmp/other.duckdb'",
        "set enable_external_access = true",
        "install httpfs",
    ],
)
def test_user_sql_cannot_leave_the_store_or_change_it(store, statement):
    with pytest.raises(InputError):
        run_user_sql(store, statement)


def test_a_wrong_statement_is_explained(store):
    with pytest.raises(InputError, match="show tables"):
        run_user_sql(store, "select nonsense from terms")
