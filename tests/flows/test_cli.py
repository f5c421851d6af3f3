"""Commands as a user types them: answers on standard output, foreseen errors in one sentence, no traceback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import worlds
from safetensors.torch import load_file, save_file

from storage.errors import InputError
from tasks.plan import Rates


@pytest.fixture(scope="module")
def store(tmp_path_factory, gpt2, corpus, prefect_db):
    """A store with a corpus, made by the ingest command's flow."""
    from flows.ingest import ingest_corpus
    from flows.parameters import IngestParameters, ModelParameters
    from tasks.corpus import CorpusParameters

    path = tmp_path_factory.mktemp("cli") / "s"
    ingest_corpus(
        IngestParameters(
            store=str(path), model=ModelParameters(name=str(gpt2)), corpus=CorpusParameters(inputs=(str(corpus),))
        )
    )
    return path


QUERY = ("--prompt", "The otter went to the", "--completion", " harbour.")
QUICK = ("--cluster", "none", "--precision", "float32", "--rescore", "3", "--top", "3")


def test_what_else_a_query_s_line_says_is_kept_with_the_query(headwater, tmp_path, store, gpt2, monkeypatch):
    seen = []

    def trace(parameters):
        seen.extend(query.as_prompt() for query in parameters.queries)
        raise InputError("the trace", expected="none", found="one", remedy="This test asks for no more.")

    monkeypatch.setattr("flows.trace.trace", trace)
    line = {"prompt": "p", "completion": " c", "query_id": "a", "colour": "blue", "line": 3, "of": {"a": [1]}}
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    refused(headwater("trace", "--store", store, "--model", gpt2, "--queries", tmp_path / "q.jsonl"), "the trace")
    assert [json.loads(prompt.metadata) for prompt in seen] == [{"colour": "blue", "line": 3, "of": {"a": [1]}}]


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 1, (out, err)
    assert err.startswith("headwater: "), err
    assert "Traceback" not in err + out
    assert ": expected " in err
    assert "found " in err
    for word in words:
        assert word in err, err


def test_one_line_leads_from_a_corpus_to_the_answer(headwater, tmp_path, gpt2, corpus):
    code, out, _ = headwater("trace", "--store", tmp_path / "s", "--model", gpt2, "--corpus", corpus, *QUERY, *QUICK)
    assert code == 0
    assert '"The otter went to the" → " harbour."' in out
    assert "strongest layer" in out
    assert "h.0.mlp." in out or "h.1.mlp." in out
    assert "next  headwater report --store" in out
    assert "compression r = " in out


def test_sql_answers_as_table_csv_and_json(headwater, store):
    statement = "select count(*) as n from documents"
    assert headwater("sql", "--store", store, statement)[1].split() == ["n", "48"]
    assert headwater("sql", "--store", store, statement, "--format", "csv")[1].split() == ["n", "48"]
    assert json.loads(headwater("sql", "--store", store, statement, "--format", "json")[1]) == [{"n": 48}]


def test_the_shell_goes_on_after_a_wrong_statement(headwater, store, monkeypatch):
    lines = iter(["select nonsense;", "select count(*) as n", "from documents;"])

    def read(prompt=""):
        try:
            return next(lines)
        except StopIteration as end:
            raise EOFError from end

    monkeypatch.setattr("builtins.input", read)
    code, out, err = headwater("sql", "--store", store)
    assert (code, out.split()) == (0, ["n", "48"])
    assert "nonsense" in err


def test_check_prints_every_parameter_once(headwater, gpt2):
    code, out, _ = headwater("check", "--model", gpt2)
    assert code == 0
    assert "transformer.h.0.mlp.c_fc" in out
    assert "LayerNorm is not a linear map" in out
    assert "4 modules" in out


def test_check_plans_a_trace_and_reports_what_precision_costs(headwater, store, gpt2):
    code, out, _ = headwater("check", "--model", gpt2, "--store", store, "--sample", 12, "--precision", "bfloat16")
    assert code == 0
    for expected in ("covariances", "token scores", "fitted and", "agree with autograd's", "against float32",
                     "bfloat16 fit and scores", "attention kernel eager", "covariances in 2 blocks"):  # fmt: skip
        assert expected in out, expected


def test_a_plan_that_cannot_fit_is_an_error_with_its_fix(headwater, gpt2, monkeypatch):
    hungry = Rates(1e-3, 1e-3, 1e9, 1e9, 0.1, bytes_per_token=2**30)
    monkeypatch.setattr("flows.check.measure_rates", lambda *_: hungry)
    refused(headwater("check", "--model", gpt2), "plan, stage", "that are free", "--batch-size 4")


def test_self_influence_lists_outliers_and_the_sql_for_more(headwater, store, gpt2):
    code, out, _ = headwater("self-influence", "--store", store, "--model", gpt2, "--precision", "float32",
                             "--cluster", "none", "--top", 3)  # fmt: skip
    assert code == 0
    assert "sequences measured now" in out
    statement = re.search(r'sql --store \S+ "(.*)"', out)[1]
    code, rows, _ = headwater("sql", "--store", store, "--format", "csv", statement)
    assert code == 0
    assert len(rows.strip().splitlines()) == 1 + 3


def test_index_and_fit_say_what_they_made(headwater, store, gpt2):
    assert headwater("index", "--store", store)[1].startswith("0 new shards")
    assert headwater("fit", "--store", store, "--model", gpt2, "--precision", "float32")[1].startswith("factors fit-")


def test_unsafe_or_broken_models_are_refused(headwater, store, gpt2, tmp_path):
    def broken(name, change):
        path = shutil.copytree(gpt2, tmp_path / name)
        change(path)
        return headwater("trace", "--store", store, "--model", path, *QUERY, *QUICK)

    def poison(path):
        weights = load_file(path / "model.safetensors")
        weights["transformer.h.1.mlp.c_proj.bias"][0] = float("nan")
        save_file(weights, path / "model.safetensors", {"format": "pt"})

    refused(broken("pickled", lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin")), "only pickled")
    refused(broken("mute", lambda p: (p / "tokenizer.json").unlink()), "expected a tokenizer")
    refused(broken("nan", poison), "h.1.mlp.c_proj.bias", "NaN")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", "The otter", "--completion", " "), ("completion that is not empty",)),
        (("--prompt", "The otter"), ("completion that is not empty",)),
        (("--prompt", "otter " * 60, "--completion", " harbour."), ("at most 48 tokens", "Shorten the prompt")),
        ((), ("either --queries FILE or --prompt",)),
        ((*QUERY, "--modules", "nothing_like_this"), ("module expression", "Linear modules there are")),
        (
            (*QUERY, "--rank", "0"),
            ("parameter method.rank: expected a number greater than or equal to 1, found '0'. Correct it.",),
        ),
        ((*QUERY, "--scheduler", "nonsense"), ("cluster 'nonsense'",)),
    ],
)
def test_bad_queries_and_parameters_are_refused(headwater, store, gpt2, arguments, words):
    refused(headwater("trace", "--store", store, "--model", gpt2, *QUICK, *arguments), *words)


def test_a_duplicated_query_id_is_refused(headwater, store, gpt2, tmp_path):
    line = {"query_id": "a", "prompt": "p", "completion": " c"}
    path = worlds.write_jsonl(tmp_path / "q.jsonl", [line, line])
    refused(headwater("trace", "--store", store, "--model", gpt2, "--queries", path), "'a' twice")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", ("at least one document",)),
        ("cut.parquet", b"PAR1 and then nothing", ("complete Parquet file",)),
        ("body.jsonl", b'{"body": "x"}', ("a column 'text'",)),
        ("blank.jsonl", b'{"text": "fine words here"}\n{"text": " "}', ("row 1", "empty text", "--bad-documents skip")),
        ("latin.jsonl", b'{"text": "caf\xe9"}', ("not UTF-8",)),
    ],
)
def test_a_bad_corpus_file_is_refused_and_the_store_keeps_what_it_had(
    headwater, store, gpt2, tmp_path, name, content, words
):
    (tmp_path / name).write_bytes(content)
    place = shutil.copytree(store, tmp_path / "s") if name != "empty.jsonl" else tmp_path / "new"
    refused(headwater("ingest", tmp_path / name, "--store", place, "--model", gpt2), str(name.split(".")[0]), *words)
    if name != "empty.jsonl":
        out = headwater("sql", "--store", place, "select count(*) as n from documents", "--format", "csv")[1]
        assert out.split() == ["n", "48"]


def test_a_store_of_a_newer_schema_is_refused(headwater, store, tmp_path):
    place = shutil.copytree(store, tmp_path / "s")
    (place / "store.json").write_text('{"headwater_store": 2}')
    refused(headwater("sql", "--store", place, "select 1"), "version 2, written by a newer headwater", "Upgrade")


def test_a_missing_store_says_how_to_make_one(headwater, tmp_path):
    refused(headwater("sql", "--store", tmp_path / "none", "select 1"), "headwater ingest")


def test_debug_shows_the_traceback(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "flows.cli", "sql", "--store", str(tmp_path / "none"), "select 1", "--debug"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode != 0
    assert "Traceback (most recent call last)" in found.stderr
    assert "StoreError" in found.stderr


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    """A real refusal by the system: the process gives up root's rights first where it has them."""
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    tmp_path.chmod(0o755)
    program = (
        "import os, sys, storage.store as s\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setegid(65534); os.seteuid(65534)\n"
        "s.create_store(sys.argv[1])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(locked / "s")], capture_output=True, text=True, check=False
    )
    assert found.returncode != 0
    assert "expected permission to" in found.stderr
    assert "name another --store" in found.stderr
