"""What the homes of runs rest on: DuckDB lists files in the order in which a view names them, and opens them later."""

from __future__ import annotations

import duckdb
import pytest
from fsspec.implementations.local import LocalFileSystem
from tiny_runs import write_run

from storage.database import catalog_statements, reading
from storage.schemas import RUN_RELATIONS
from storage.store import create_store


class Listing(LocalFileSystem):
    """The local disk under another name, which remembers what was listed."""

    protocol = ("watched",)
    listed: list[str] = []  # noqa: RUF012  # of all instances: DuckDB asks one of its own

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("watched://"))

    def glob(self, path, **options):
        self.listed.append(str(path))
        return super().glob(path, **options)


@pytest.fixture
def store(tmp_path):
    store = create_store(tmp_path / "s")
    for k in range(3):
        write_run(store, f"run-{k}")
    return store


@pytest.mark.parametrize("relation", ["runs", *RUN_RELATIONS])
def test_a_view_lists_the_changes_before_any_file_that_they_point_to(store, relation):
    connection = duckdb.connect()
    connection.register_filesystem(Listing())
    for text in catalog_statements(f"'watched://{store.root}'"):
        connection.execute(text)
    Listing.listed.clear()
    connection.execute(f"select count(*) from {relation}").fetchall()
    names = [path.removeprefix(f"watched://{store.root}/tables/").split("/")[0] for path in Listing.listed]
    assert names[0] == "merges"
    assert set(names) == {"merges", "runs", relation}
    assert max(k for k, name in enumerate(names) if name == "runs") <= max(
        k for k, name in enumerate(names) if name == relation
    )
    connection.close()


def test_a_statement_is_asked_again_when_a_file_went_between_listing_and_opening(store, monkeypatch):
    connection = duckdb.connect()
    connection.register_filesystem(Listing())
    statement = f"select count(*) from read_parquet('watched://{store.relation('influences')}/*.parquet')"
    going = ["run-2"]

    def glob(listing, path, **options):
        found = LocalFileSystem.glob(listing, path, **options)
        while going:
            store.file("influences", going.pop()).unlink()
        return found

    monkeypatch.setattr(Listing, "glob", glob)
    with pytest.raises(duckdb.Error, match=r"run-2\.parquet"):
        connection.execute(statement).fetchall()
    going.append("run-1")
    assert reading(lambda: connection.execute(statement).fetchall()) == [(5,)]
    connection.close()
