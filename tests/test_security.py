"""What others put into a store, a corpus, a model or a name does nothing but be read; what listens, listens here only.

Beside these: tests/tasks/test_report.py (HTML and markdown), tests/storage/test_prefilter.py (--where),
tests/storage/test_inbox.py (names of queries), tests/test_cluster_recipe.py (published ports).
"""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import worlds

from flows import cli
from flows.cluster import open_workers
from flows.console import make_console
from flows.run_commands import _print_sql
from storage.catalog import run_user_sql
from storage.checkpoints import find_checkpoint, load_model, load_tokenizer
from storage.database import session
from storage.errors import HeadwaterError, InputError, ModelError
from storage.inputs import find_inputs
from storage.schemas import SCHEMAS
from storage.store import create_store, safe_name
from storage.tables import read_part, write_part
from storage.tensors import read_tensors

ROOT = Path(__file__).parents[1]
CODE = [p for folder in ("flows", "tasks", "storage", "deployments") for p in sorted((ROOT / folder).rglob("*.py"))]
LOOPBACK = {"127.0.0.1", "::1"}
HOSTILE = "\x1b]0;owned\x07\x1b[2J \x9b31m \u202etfel \x00 <b> [link](javascript:1)"


# What listens


def test_server_and_local_cluster_listen_on_loopback_only(prefect_db):
    """Every listening socket of this process and of all that it started: Prefect's server, scheduler, workers."""
    with open_workers("local", 2) as workers:
        workers.lexical()
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        sockets = [c for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(sockets) >= 4  # a server, a scheduler, two workers
    assert {socket.laddr.ip for socket in sockets} <= LOOPBACK


# Pickles


class Payload:
    """Unpickling one makes the file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


READERS = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "unsafe_load", "read_pickle"}


def test_no_module_reads_a_pickle_or_runs_text():
    """`torch.load`, `np.load` and `yaml.load` by any name, pickle's modules at all, eval and exec of anything.

    Except one: the optimizer's state beside a foreign checkpoint that the user names, which no store holds, opened so
    that tensors and numbers are all it can be; `pickle` is there for the error of what is more.
    """
    offenders = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.split(".")[0] in READERS]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module for _ in "." if (node.module or "").split(".")[0] in READERS]
                names += [alias.name for alias in node.names if alias.name == "load"]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
                names = [node.func.id]
            elif isinstance(node, ast.Attribute) and node.attr in {"load", "read_pickle", "unsafe_load"}:
                names = [ast.unparse(node)]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node)
            offenders += [(path.name, name) for name in names]
    assert sorted(offenders) == [("trajectory.py", "pickle"), ("trajectory.py", "torch.load")]


def test_pickles_planted_in_a_store_stay_unread(tmp_path, gpt2, corpus, prefect_db):
    from flows.parameters import ModelParameters, QueryParameters, TraceParameters
    from flows.trace import trace
    from tasks.corpus import CorpusParameters
    from tasks.methods import MethodParameters

    store, witness = create_store(tmp_path / "s"), tmp_path / "witness"
    poison = pickle.dumps(Payload(witness))
    for folder in ("work", "factors", "parts", "tables/queries", "embeddings", "tables/documents"):
        for name in ("x.pkl", "x.pickle", "model.pt", "query_gradients.bin", "x.joblib"):
            (store.root / folder).mkdir(parents=True, exist_ok=True)
            (store.root / folder / name).write_bytes(poison)
        np.save(store.root / folder / "x.npy", np.array([Payload(witness)]), allow_pickle=True)
        torch.save(Payload(witness), store.root / folder / "y.pt")
    trace(
        TraceParameters(
            store=str(store.root), model=ModelParameters(name=str(gpt2)), cluster="none",
            queries=(QueryParameters(prompt="The otter went to the", completion=" harbour."),),
            corpus=CorpusParameters(inputs=(str(corpus),)), method=MethodParameters(rescore=2),
        )
    )  # fmt: skip
    assert not witness.exists()
    pickle.loads(poison)  # the plant was a live one
    assert witness.exists()


def test_a_pickle_under_a_name_of_ours_is_refused(tmp_path):
    store, witness = create_store(tmp_path / "s"), tmp_path / "witness"
    torch.save(Payload(witness), tmp_path / "a.safetensors")
    with pytest.raises(HeadwaterError):
        read_tensors(tmp_path / "a.safetensors")
    store.file("queries", "evil").write_bytes(pickle.dumps(Payload(witness)))
    with pytest.raises(HeadwaterError):
        read_part(store, "queries", "evil")
    assert not witness.exists()


def test_extension_types_in_a_parquet_file_are_not_brought_to_life(tmp_path):
    """Arrow can keep a pickled Python type in a column's metadata, and old releases loaded it."""
    store, witness = create_store(tmp_path / "s"), tmp_path / "witness"
    live = {b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Payload(witness))}  # fmt: skip
    schema = pa.schema([f.with_metadata(live) for f in SCHEMAS["terms"]])
    table = pa.table({"term_id": [1], "document_frequency": [2]}, schema=pa.schema(SCHEMAS["terms"]))
    pq.write_table(pa.table(table.columns, schema=schema), store.file("terms", "p0"))
    assert read_part(store, "terms", "p0")["term_id"].to_pylist() == [1]
    assert run_user_sql(store, "select document_frequency from terms")[1] == [(2,)]
    assert not witness.exists()


# Models


def test_a_model_that_brings_code_is_loaded_without_it(gpt2, tmp_path):
    path, witness = shutil.copytree(gpt2, tmp_path / "m"), tmp_path / "witness"
    (path / "evil.py").write_text(
        f"import os\nos.mkdir({str(witness)!r})\nfrom transformers import GPT2Config as Config, "
        "GPT2LMHeadModel as Model, GPT2TokenizerFast as Tokenizer\n"
    )
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (path / "config.json").write_text(json.dumps(config))
    words = json.loads((path / "tokenizer_config.json").read_text())
    words["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    (path / "tokenizer_config.json").write_text(json.dumps(words))
    found = find_checkpoint(str(path))
    load_model(found)
    load_tokenizer(found)
    config["model_type"] = "known-to-nobody"  # now there is no class but the one that came along
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(HeadwaterError):
        load_model(find_checkpoint(str(path)))
    assert not witness.exists()


# SQL


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = create_store(tmp_path_factory.mktemp("sql") / "s")
    columns = {"document_id": [HOSTILE], "text": [HOSTILE], "source": ["x"], "metadata": ["{}"]}
    write_part(made, "documents", "p0", columns=columns)
    outside = made.root.parent / "outside.parquet"
    pq.write_table(pa.table({"secret": [42]}), outside)
    (made.root / "tables" / "extra").mkdir()
    (made.root / "tables" / "extra" / "link.parquet").symlink_to(outside)
    (made.root / "tables" / "extra" / "folder").symlink_to(made.root.parent)
    run_user_sql(made, "from documents")  # builds the catalog
    return made


ESCAPES = [
    "from read_text('/etc/passwd')",
    "from read_blob('/proc/self/environ')",
    "from glob('/etc/*')",
    "from read_text('{root}/store.json')",
    "from '{tables}/../../outside.parquet'",
    "from '{tables}/extra/link.parquet'",
    "from '{tables}/extra/folder/outside.parquet'",
    "from 'https://example.com/x.parquet'",
    "attach '{tables}/x.duckdb'",
    "attach ':memory:' as m; create table m.t as select 1",
    "install httpfs",
    "load httpfs",
    "load '/tmp/x.duckdb_extension'",
    "set enable_external_access = true",
    "reset lock_configuration",
    "set temp_directory = '/tmp'",
    "pragma profile_output = '{tables}/p.json'",
    "call enable_logging(storage := 'file', storage_path := '{tables}/log')",
    "create secret s (type s3)",
    "import database '/tmp'",
    "drop view documents",
    "create or replace macro top_influences(a) as 1",
    "copy (select 1) to '/tmp/escaped.csv'",
    # A directory that may be read may be written to: these would replace what a store holds.
    "copy (select 1) to '{tables}/documents/p0.parquet'",
    "select 1; copy (select 1) to '{tables}/documents/p0.parquet'",
    "with x as (copy (select 1) to '{tables}/documents/p0.parquet') from x",
    "explain analyze copy (select 1) to '{tables}/documents/p0.parquet'",
    "explain (analyze) with x as (copy (select 1) to '{tables}/documents/p0.parquet') from x",
    "/* a */ explain -- b\n analyze copy (select 1) to '{tables}/documents/p0.parquet'",
    "prepare p as copy (select 1) to '{tables}/documents/p0.parquet'; execute p",
    "copy (pivot (select 1 a, 2 b) on a) to '{tables}/documents/p0.parquet'",
    "export database '{tables}/exported'",
]


@pytest.mark.parametrize("statement", ESCAPES)
def test_user_sql_reads_nothing_outside_the_tables_and_changes_nothing(store, statement):
    before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if "work" not in p.parts}
    with pytest.raises(InputError):
        run_user_sql(store, statement.format(root=store.root, tables=store.root / "tables"))
    found = {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if "work" not in p.parts}
    assert {p: t for p, t in found.items() if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}
    assert not Path("/tmp/escaped.csv").exists()


@pytest.mark.parametrize(
    "statement",
    ["select count(*) from documents", "from documents", "show tables", "describe documents", "summarize documents",
     "explain analyze from documents", "select 1; select 2", "pivot documents on source using count(*)",
     "-- a comment\nwith copies as (select 1 as copy) select copy from copies", "select 'copy (select 1) to x'"],
)  # fmt: skip
def test_what_only_reads_is_answered(store, statement):
    assert run_user_sql(store, statement)[1]


def test_a_query_s_text_is_a_value_and_never_sql(store):
    with session(store) as connection:
        asked = "'; drop view documents; --"
        found = connection.sql("select * from top_influences($q)", params={"q": asked}).fetchall()
        assert found == []
        assert connection.sql("select count(*) from documents").fetchall() == [(1,)]


# Text on a terminal


def controls(text: str) -> set[str]:
    return {c for c in text if (ord(c) < 32 and c not in "\r\n\t") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066"}


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_terminal_is_never_sent_a_control_character_of_the_corpus(store, form):
    """In a real terminal: a pseudo-terminal's other end, read to its end."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flows.cli", "sql", "--store", str(store.root), "--format", form]
    environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200"}
    statement = 'select text as "\x1b[2Jof" from documents'  # a column's name is sent too
    process = subprocess.Popen([*command, statement], cwd=ROOT, stdout=theirs, env=environment)
    os.close(theirs)
    said = b""
    while True:
        try:
            some = os.read(ours, 65536)
        except OSError:  # so a terminal's end is told on Linux
            break
        if not some:
            break
        said += some
    assert process.wait() == 0
    assert "<202e>tfel" in said.decode()
    assert {"<001b>[2Jof", "\\u001b[2Jof"} & set(re.findall(r"\S+\[2Jof", said.decode().replace('"', "")))
    assert controls(said.decode()) == set()


SHELL = """$(touch owned) `touch owned` "; touch owned; ' \\" $HOME !! it's"""


def test_commands_to_copy_run_nothing_but_themselves(tmp_path, capsys):
    """What is printed is given to a shell, in which headwater says what it was called with."""
    _print_sql(make_console(), f"{SHELL} store", "run-1", [SHELL])
    lines = [line[6:] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 4
    for line in lines:
        script = f"headwater() {{ printf '%s\\n' \"$@\"; }}\n{line}"
        said = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert said.stderr == ""
        *words, statement = said.stdout.splitlines()
        assert words == ["sql", "--store", f"{SHELL} store"]
        assert statement.startswith("select * from ")
    assert [*tmp_path.iterdir()] == []


def test_an_error_or_a_warning_that_quotes_a_corpus_is_printable(monkeypatch, capsys):
    def fail(*_):
        logging.getLogger("tasks.x").warning("odd: %s", HOSTILE)
        raise InputError(HOSTILE, expected="a", found=HOSTILE, remedy="b")

    monkeypatch.setattr(cli, "app", fail)
    loggers = [logging.getLogger(name) for name in ("flows", "tasks", "storage")]
    before = [list(logger.handlers) for logger in loggers]
    try:
        with pytest.raises(SystemExit):
            cli.main()
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
    said = capsys.readouterr().err
    assert said.count("<202e>tfel") == 3
    assert controls(said) == set()


def test_rows_that_are_redirected_are_as_they_are(store, capsys):
    from flows.shell import answer

    answer(store, "select text from documents", "csv")
    assert HOSTILE in capsys.readouterr().out


# Names


NAMES = ["../escape", "a/b", "..", "", ".hidden", "/etc/passwd", "nul\0", "x" * 200, "line\n", "C:\\x", "ä"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_component_of_a_path_or_refused(name):
    with pytest.raises(InputError):
        safe_name(name)


@pytest.mark.parametrize("name", ["../../outside", "..", "/etc", "run-1/../../x", "a\0b"])
def test_a_run_s_name_reaches_no_file(store, name, tmp_path):
    from typer.testing import CliRunner

    from tasks.report import render_report

    with pytest.raises(InputError, match="complete run|of that name"):
        render_report(store, name, tmp_path / "r.html")
    victim = store.root.parent / "outside.parquet"
    done = CliRunner().invoke(cli.app, ["runs", "delete", "--store", str(store.root), "--yes", name])
    assert done.exit_code != 0
    assert victim.exists()


@pytest.mark.parametrize("revision", ["../../../x", "a/../b", "", "/etc", "a\0b"])
def test_a_revision_that_climbs_out_of_the_hub_s_cache_is_refused(revision):
    with pytest.raises(ModelError, match="expected a commit, branch or tag"):
        find_checkpoint("someone/some-model", revision)


@pytest.mark.parametrize("name", ["../x", "a/b/../../../x", "someone/../../x", "~nobody/x"])
def test_a_model_s_name_that_is_no_directory_and_no_repository_is_refused(name):
    with pytest.raises(ModelError):
        find_checkpoint(name)


def test_a_dataset_s_splits_stay_in_its_directory(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["../elsewhere"]}))
    with pytest.raises(InputError, match="name '../elsewhere'"):
        find_inputs([tmp_path / "d"])


def test_names_inside_a_corpus_file_form_no_path(tmp_path, gpt2):
    """Documents, sources and the file itself have names that climb; everything written stays inside the store."""
    from tasks.corpus import CorpusParameters, ingest
    from tasks.fanout import Workers

    records = [
        record | {"document_id": f"../../../{k}\0", "source": "../../etc"}
        for k, record in enumerate(worlds.documents(4))
    ]
    file = worlds.write_jsonl(tmp_path / "in" / "..%2f..%2fname; rm -rf.jsonl", records)
    made = create_store(tmp_path / "deep" / "s")
    ingest.fn(made, gpt2, CorpusParameters(inputs=(str(file),)), Workers())
    assert run_user_sql(made, "select count(*) from documents")[1] == [(4,)]
    written = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert written == {"in", "deep"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s"]
