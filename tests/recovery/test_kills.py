"""SIGKILL of the flow's process in every stage: run again, it ends in the tables of an undisturbed run, row for row."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import worlds
from recovery import walks
from recovery.walks import Change
from tables import assert_same

STAGES = ("corpus", "lexical index", "candidates", "factors", "query gradients", "scores", "token scores", "results",
          "filter audit", "completion")  # fmt: skip
# A finished piece of work, by a file that is written last: whoever finds it must not do the work again.
FINISHED = ("work/cut-*/result.json", "parts/*.json", "tables/documents/p*.parquet", "tables/sequences/p*.parquet",
            "tables/terms/p*.parquet", "tables/postings/p*.parquet", "tables/queries/q*.parquet",
            "tables/candidates/run-*.parquet", "factors/*/*.safetensors", "factors/*/manifest.json",
            "tables/self_influences/*/*.parquet", "work/run-*/run_queries/all.parquet",
            "work/run-*/scored/[0-9]*.parquet", "work/run-*/exact_layers/[0-9]*.parquet",
            "tables/runs/run-*.parquet")  # fmt: skip
# Files that a stage writes before the one that says they are there: written again if the kill came between.
UNSAID = {
    "tables/documents/{}.parquet": "parts/{}.json",
    "tables/sequences/{}.parquet": "parts/{}.json",
    "tables/postings/{}.parquet": "tables/terms/{}.parquet",
}


@dataclass(frozen=True)
class World:
    """A model, three input files, what an undisturbed walk leaves, and each change that it made.

    Walks begin in a copy of the store `base`, in a new one without it, and clear the part `replaced` away.
    """

    model: Path
    files: list[Path]
    tables: dict[str, list[tuple]]
    changes: list[Change]
    base: Path | None = None
    replaced: str = ""

    def parameters(self, store: Path):
        return walks.parameters(store, self.model, self.files)

    def moments(self, stage: str) -> list[int]:
        """Numbers of a stage's changes after which a store is in a state of its own."""
        mine = [change for change in self.changes if change.stage == stage]
        # A file's first name, in work/, is removed after it was given its last one; nobody looks at it.
        return [n for n, change in enumerate(mine) if not _is_first_name(change.path)]


def _is_first_name(path: str) -> bool:
    """Whether it is the name of a file that is being written: outside every glob, left by whoever is killed there."""
    folder, _, name = path.rpartition("/")
    return folder == "work" or (name.startswith(".") and ".json." in name)


@pytest.fixture(scope="module")
def world(tmp_path_factory, gpt2) -> World:
    folder = tmp_path_factory.mktemp("undisturbed")
    files = walks.three_files(folder / "corpus")
    changes = walks.walk(walks.parameters(folder / "s", gpt2, files), folder / "log")
    found = walks.tables(folder / "s")
    empty = [name for name, rows in found.items() if not rows]
    assert {"influences", "token_influences", "filter_audits", "runs"}.isdisjoint(empty), empty
    assert {change.stage for change in changes} >= set(STAGES)
    return World(gpt2, files, found, changes)


@pytest.fixture(scope="module")
def changed(tmp_path_factory, world) -> World:
    """A store that has been traced, of whose files one has got another text since."""
    folder = tmp_path_factory.mktemp("changed")
    files = [Path(shutil.copy(file, folder)) for file in world.files]
    walks.walk(walks.parameters(folder / "base", world.model, files), folder / "log")
    worlds.write_jsonl(files[1], [{"text": "The badger went to the quarry. Nobody saw it."}] * 3)
    store = shutil.copytree(folder / "base", folder / "s")
    changes = walks.walk(walks.parameters(store, world.model, files), folder / "log")
    found = walks.tables(store)
    assert len(found["runs"]) == 2
    return World(world.model, files, found, changes, folder / "base", "p00001")


def finished(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every finished piece."""
    found = {}
    for pattern in FINISHED:
        for path in store.glob(pattern):
            status = path.stat()
            found[str(path.relative_to(store))] = (status.st_ino, status.st_mtime_ns)
    for written, says in UNSAID.items():
        for name in [Path(path).stem for path in found if path.startswith(written.partition("{")[0])]:
            if says.format(name) not in found:
                found.pop(written.format(name), None)
    return found


def assert_nothing_half_written(store: Path) -> None:
    """Every file that a reader can find is whole, and no row of an incomplete run is seen."""
    for path in (store / "tables").rglob("*"):
        if path.is_file():
            assert path.suffix == ".parquet", path
            pq.ParquetFile(path).read()
    if (store / "tables" / "runs").is_dir() and (store / "store.json").exists():
        seen = walks.tables(store)
        runs = {row[0] for row in seen["runs"]}
        assert {row[0] for name in ("candidates", "influences", "modules", "run_queries") for row in seen[name]} <= runs


def kill_and_resume(world: World, folder: Path, moments: Iterable[tuple[str, int]]) -> None:
    """Kill at each moment in turn, in one store; each attempt goes on where the last one was killed."""
    folder.mkdir(exist_ok=True)
    store, undisturbed = folder / "s", {change.path for change in world.changes}
    if world.base:
        shutil.copytree(world.base, store)
        undisturbed |= {path.relative_to(store).as_posix() for path in store.rglob("*")}
    before: dict[str, tuple[int, int]] = {}
    for k, moment in enumerate([*moments, None]):
        again = walks.walk(world.parameters(store), folder / f"log{k}", moment)
        now = {path: facts for path, facts in finished(store).items() if Path(path).stem != world.replaced}
        kept = {path: facts for path, facts in before.items() if (store / path).exists()}
        assert kept == {path: now[path] for path in kept}, f"work done again after {moment}"
        redone = {change.path for change in again if change.event != "os.remove"} & before.keys()
        assert not redone - {"clock.json"}, f"{redone} written again after {moment}"
        assert_nothing_half_written(store)
        before = now
    assert_same(walks.tables(store), world.tables)
    left = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
    left = {path for path in left if not _is_first_name(path) and not path.startswith("work/locks/")}
    assert left <= undisturbed, f"left behind: {left - undisturbed}"


def test_a_trace_killed_again_and_again_ends_in_the_same_tables(world, tmp_path):
    last = [(stage, world.moments(stage)[-1]) for stage in ("corpus", "factors", "scores", "results", "completion")]
    kill_and_resume(world, tmp_path, last)


@pytest.mark.e2e
@pytest.mark.parametrize("stage", ["start", *STAGES, "discard"])
def test_a_trace_killed_in_any_stage_ends_in_the_same_tables(world, tmp_path, stage):
    moments = world.moments(stage)
    for n in sorted({moments[0], moments[len(moments) // 2], moments[-1]}):
        kill_and_resume(world, tmp_path / str(n), [(stage, n)])


@pytest.mark.e2e
def test_a_changed_file_is_exchanged_whole_whenever_its_ingest_is_killed(changed, tmp_path):
    for n in changed.moments("corpus")[::4]:
        kill_and_resume(changed, tmp_path / str(n), [("corpus", n)])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["start", *STAGES, "discard"])
def test_a_trace_killed_at_any_moment_ends_in_the_same_tables(world, tmp_path, stage):
    for n in world.moments(stage):
        kill_and_resume(world, tmp_path / str(n), [(stage, n)])
