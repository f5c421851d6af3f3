"""Whether a store is sound: files, corpus parts, factors, every complete run by SQL, and what belongs to nothing.

What is wrong is named with its next step; nothing is changed but a catalog that is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import duckdb

from storage.catalog import run_user_sql
from storage.database import open_connection, part_view, rows, statement, statement_names
from storage.errors import HeadwaterError
from storage.factors import fit_ids, fit_path, read_fit
from storage.homes import HOUSED, OWN, Homes, home_of, read_homes
from storage.leftovers import STALE, stale_work
from storage.locks import is_held
from storage.merging import OPTIONAL, run_ids_at
from storage.places import entries
from storage.schemas import INDEXES, RUN_RELATIONS
from storage.sequences import Part, all_parts, current_parts
from storage.soundness import Counts, Finding, check_tables, check_tensors, name_of
from storage.store import Store
from storage.tables import count_rows, has_part, read_part

CHECKED = ("candidates", "influences", "layer_influences", "token_influences")  # what sql/checks names


def verify(store: Store) -> tuple[Counts, list[Finding]]:
    """Read everything in the store; what was read, and what is wrong with it."""
    counts = Counts()
    found: list[Finding] = []
    for check in (
        check_tables(store, counts),
        check_tensors(store, counts),
        _corpus(store, found),
        _fits(store),
        _merged(store),
        _runs(store, counts),
        _orphans(store),
        _catalog(store),
    ):
        known = {finding.what for finding in found}  # what cannot be read is found once, not by every check over it
        found += [finding for finding in _guarded(store, check) if finding.what not in known]
    return counts, list(dict.fromkeys(found))


def _guarded(store: Store, check: Iterable[Finding]) -> Iterator[Finding]:
    """The findings of a check; a file that it cannot read is one more."""
    try:
        yield from check
    except HeadwaterError as error:
        yield Finding(error.subject.rpartition(f"{store.root}/")[2], error.found, error.remedy)


def _corpus(store: Store, found: list[Finding]) -> Iterator[Finding]:
    """Manifests against each other and against their parts, but for files that are known to be broken."""
    end = 0
    for part in sorted(all_parts(store), key=lambda part: part.first_sequence_id):
        if part.first_sequence_id != end:
            said = f"sequence ids from {part.first_sequence_id:,}, where the part before ends at {end:,}"
            yield Finding(f"parts/{part.name}.json", said, "restore it from a backup")
        end = max(end, part.end_sequence_id)
    broken = {finding.what for finding in found}
    for part in current_parts(store):
        again = f"restore it from a backup, or ingest {part.source} into another store"
        yield from _held_against(store, part, ("documents", "sequences"), broken, _part, again)
        for terms, names in INDEXES.items():
            if has_part(store, names[0], part.name):
                again = f"delete {part.name}.parquet of {', '.join(names)} and run headwater index --terms {terms}"
                yield from _held_against(store, part, names, broken, _shard, again)


Check: TypeAlias = Callable[[duckdb.DuckDBPyConnection, Store, Part, tuple[str, ...]], Iterator[tuple[str, str]]]


def _held_against(
    store: Store, part: Part, names: tuple[str, ...], broken: set[str], check: Check, again: str
) -> Iterator[Finding]:
    """What a check of some relations' files of a part finds; it reads through DuckDB, within the memory limit."""
    files = {name: f"tables/{name}/{part.name}.parquet" for name in names}
    missing = [name for name in names if not has_part(store, name, part.name)]
    for name in missing:
        yield Finding(files[name], "no file", again)
    if missing or broken & set(files.values()):
        return
    with open_connection(store) as connection:
        for name, said in check(connection, store, part, names):
            yield Finding(files[name], said, again)


def _part(
    connection: duckdb.DuckDBPyConnection, store: Store, part: Part, names: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    for name in names:
        part_view(connection, store, f"part_{name}", name, part.name)
    (held,) = rows(connection, "verification/part", part=part.name)
    if held["n_documents"] != part.n_documents:
        yield "documents", f"{held['n_documents']:,} documents in place of {part.n_documents:,}"
    ids = (held["n_sequences"], held["n_ids"], held["first_id"], held["last_id"])
    n = part.n_sequences
    if ids != (n, n, part.first_sequence_id, part.end_sequence_id - 1) and (n or held["n_sequences"]):
        yield "sequences", f"other sequence ids than {part.first_sequence_id} to {part.end_sequence_id - 1}"
    if held["n_miscounted"] or held["n_tokens"] != part.n_tokens:
        said = f"{held['n_tokens']:,} tokens in place of {part.n_tokens:,}, or not as n_tokens has them"
        yield "sequences", said
    if held["n_of_others"]:
        yield "sequences", "sequences of another part"
    if held["n_without_document"]:
        yield "sequences", "sequences of documents that the part does not have"


def _shard(
    connection: duckdb.DuckDBPyConnection, store: Store, part: Part, names: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    for view, name in (("shard_terms", names[0]), ("shard_postings", names[1])):
        part_view(connection, store, view, name, part.name)
    (held,) = rows(connection, "verification/shard")
    total, n = held["document_frequencies"], held["n_postings"]
    if total != n:
        yield names[0], f"document frequencies that sum to {total:,}, and {n:,} postings"
    if n and not part.first_sequence_id <= held["first_id"] <= held["last_id"] < part.end_sequence_id:
        yield names[1], "postings of sequences of another part"
    for name in names[2:]:
        lengths = count_rows(store, name, part.name)
        if lengths != part.n_sequences:
            yield name, f"{lengths:,} sequences in place of {part.n_sequences:,}"


def _fits(store: Store) -> Iterator[Finding]:
    for fit_id in fit_ids(store):
        for k in range(len(read_fit(store, fit_id).modules)):
            for name in (f"{k}.basis", f"{k}.eigenvalues"):
                path = fit_path(store, fit_id, name)
                if not path.exists():
                    step = f"delete factors/{fit_id}: the next run that needs it fits it anew"
                    yield Finding(name_of(store, path), "no file", step)


def _merged(store: Store) -> Iterator[Finding]:
    """Merged files against the homes that `merges` gives."""
    homes = read_homes(store)
    for home in sorted({r.home for r in homes.of_runs.values() if r.home > OWN}):
        listed = {relation: entries(store.relation(relation) / "merged", ".parquet") for relation in HOUSED}
        for relation in (relation for relation in HOUSED if str(home) not in listed[relation]):
            step = f"restore it from a backup, or delete and trace again the runs that merges has at home {home}"
            yield Finding(f"tables/{relation}/merged/{home}.parquet", "no file", step)
        if str(home) in listed["runs"]:
            held = run_ids_at(store, home)
            for run in sorted(r for r in homes.of_runs if homes.home(r) == home and held.count(r) != 1):
                yield _broken_run(store, run, f"{held.count(run)} rows in runs/merged/{home}.parquet in place of one")


def complete_runs(store: Store, homes: Homes) -> list[str]:
    """The runs whose rows a reader sees, told from names alone, so that a damaged file hides none."""
    own = [run for run in entries(store.relation("runs"), ".parquet") if run != "schema" and homes.home(run) == OWN]
    return sorted([*own, *(run for run, r in homes.of_runs.items() if r.home > OWN)])


def _runs(store: Store, counts: Counts) -> Iterator[Finding]:
    """Every complete run: none of its parts is missing, and no statement of sql/checks finds an offending row."""
    homes = read_homes(store)
    complete = complete_runs(store, homes)  # before their parts, which are written before a run is complete
    listed = {relation: entries(store.relation(relation), ".parquet") for relation in RUN_RELATIONS}
    with open_connection(store) as connection:  # without the views, which a damaged file may keep from being made
        for run in complete:
            counts.runs += 1
            needed = [relation for relation in RUN_RELATIONS if relation not in OPTIONAL and homes.home(run) == OWN]
            missing = [relation for relation in needed if run not in listed[relation]]
            if missing and home_of(store, run) == OWN:  # else it has been merged or deleted meanwhile
                yield _broken_run(store, run, f"no {', no '.join(f'{m}/{run}.parquet' for m in missing)}")
                continue
            found = _checked(connection, store, run)
            if found and home_of(store, run) != homes.home(run):
                found = _checked(connection, store, run) if has_part(store, "runs", run) else []
            yield from found


def _checked(connection: duckdb.DuckDBPyConnection, store: Store, run: str) -> list[Finding]:
    try:
        return list(_check_run(connection, store, run))
    except (duckdb.Error, HeadwaterError) as error:
        return [_broken_run(store, run, f"rows that cannot be read: {str(error).splitlines()[0]}")]


def _check_run(connection: duckdb.DuckDBPyConnection, store: Store, run: str) -> Iterator[Finding]:
    facts = read_part(store, "runs", run).to_pylist()[0]
    asked = len(json.loads(facts["parameters"])["queries"])
    answered = len(read_part(store, "run_queries", run, columns=["query_id"]))
    if answered != asked:
        yield _broken_run(store, run, f"{answered} queries in place of {asked}")
    for relation in CHECKED:
        part_view(connection, store, f"run_{relation}", relation, run)
    for name in statement_names("checks"):
        parameters = {"method": facts["method"]} if "$method" in statement(name) else {}
        offending = rows(connection, name, **parameters)
        if offending:
            said = f"{len(offending)} rows that sql/{name}.sql does not allow, the first {offending[0]}"
            yield _broken_run(store, run, said)


def _broken_run(store: Store, run: str, found: str) -> Finding:
    return Finding(
        f"run {run}", found, f"headwater runs delete {run} --store {store.root}, and trace its queries again"
    )


def _orphans(store: Store) -> Iterator[Finding]:
    """What belongs to no complete run and no part of the corpus, and nobody works on."""
    # Listed before what they could belong to, so that what is completed at this moment is no orphan.
    files = {(run, relation) for relation in RUN_RELATIONS for run in entries(store.relation(relation), ".parquet")}
    begun = {path.name for path in (store.root / "work").glob("run-*") if path.is_dir()}
    shards = [name for names in INDEXES.values() for name in names]
    parts = [(r, name) for r in ("documents", "sequences", *shards) for name in entries(store.relation(r), ".parquet")]
    homes = read_homes(store)
    complete = {*complete_runs(store, homes), "schema"}
    for run in sorted(({run for run, _ in files} | begun) - complete):
        if homes.home(run) == OWN and not is_held(store, run):
            said = "files in " + ", ".join(sorted(r for name, r in files if name == run) + ["work"] * (run in begun))
            step = f"the same headwater trace finishes it; headwater runs delete {run} --store {store.root} removes it"
            yield Finding(f"run {run}", f"{said}, but no row in runs: it was broken off", step)
    known = {part.name for part in all_parts(store)} | {"schema"}
    for relation, name in parts if not is_held(store, "corpus") else []:
        if name not in known:
            step = "run headwater ingest again: it was broken off, and goes on"
            yield Finding(f"tables/{relation}/{name}.parquet", "rows of a corpus part without a manifest", step)
    for leftover in stale_work(store, STALE):
        yield Finding(
            f"{leftover.kind}/{leftover.name}", leftover.reason, f"headwater store prune --store {store.root} --yes"
        )


def _catalog(store: Store) -> Iterator[Finding]:
    try:
        run_user_sql(store, "select 1")
    except (duckdb.Error, HeadwaterError, ValueError) as error:
        step = "delete headwater.duckdb and catalog.json: they are built anew"
        yield Finding("headwater.duckdb", str(error).splitlines()[0], step)
