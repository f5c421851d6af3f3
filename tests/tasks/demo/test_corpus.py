"""The demo corpus: where its documents come from, that they repeat, and which of them are true sources."""

import ast
import hashlib
import json
import locale
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from tasks.demo import corpus
from tasks.demo.facts import facts, passages, utterances

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def documents():
    return {name: list(group()) for name, group in corpus.GROUPS.items()}


def test_every_group_names_itself_as_source_and_no_id_comes_twice(documents):
    assert {name: {d.source for d in group} for name, group in documents.items()} == {
        name: {name} for name in ("language_reference", "docstrings", "planted")
    }
    ids = Counter(d.document_id for group in documents.values() for d in group)
    assert [name for name, count in ids.items() if count > 1] == []


def test_the_corpus_holds_about_two_million_characters(documents):
    assert 1_500_000 < sum(len(d.text) for group in documents.values() for d in group) < 2_500_000


def test_only_planted_text_has_copies(documents):
    counts = Counter(d.text for group in documents.values() for d in group)
    copied = {text: count for text, count in counts.items() if count > 1}
    assert copied == {passage.text: corpus.PASSAGE_COPIES for passage in passages()}


def test_docstrings_are_those_of_the_running_python(documents):
    described = {d.metadata["name"]: d.text for d in documents["docstrings"]}
    assert described["textwrap.dedent"] == ast.get_docstring(
        next(
            node
            for node in ast.parse(Path(textwrap.__file__).read_text(encoding="utf-8")).body
            if getattr(node, "name", "") == "dedent"
        )
    )


def test_docstrings_stop_at_their_budget(monkeypatch):
    monkeypatch.setattr(corpus, "DOCSTRING_BUDGET", 5_000)
    few = list(corpus.docstrings())
    assert 0 < sum(len(d.text) for d in few) <= 5_000
    assert min(len(d.text) for d in few) >= corpus.DOCSTRING_MINIMUM


def test_docstrings_leave_out_tests_and_idle(documents):
    parts = {part for d in documents["docstrings"] for part in d.metadata["module"].split(".")}
    assert parts.isdisjoint({"test", "tests", "idlelib", "lib2to3", "antigravity", "this"})


def test_every_wording_and_every_copy_is_one_planted_document(documents):
    by_fact = Counter(d.metadata.get("fact_id") for d in documents["planted"])
    by_passage = Counter(d.metadata.get("passage_id") for d in documents["planted"])
    assert {fact.fact_id: by_fact[fact.fact_id] for fact in facts()} == dict.fromkeys(
        (fact.fact_id for fact in facts()), 30
    )
    assert [by_passage[passage.passage_id] for passage in passages()] == [corpus.PASSAGE_COPIES] * len(passages())
    texts = {d.text for d in documents["planted"]}
    assert {text for fact in facts() for text in utterances(fact)} <= texts


def test_wordings_of_a_fact_do_not_stand_in_a_row(documents):
    owners = [tuple(d.metadata.values()) for d in documents["planted"]]
    assert sum(a == b for a, b in pairwise(owners)) < len(owners) / 10


def test_documents_do_not_depend_on_process_hash_seed_or_locale(documents):
    program = (
        "from tasks.demo.corpus import GROUPS\nimport hashlib, json\nfrom dataclasses import asdict\n"
        "everything = [asdict(d) for group in GROUPS.values() for d in group()]\n"
        "print(hashlib.sha256(json.dumps(everything).encode()).hexdigest())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "LC_ALL": name, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, name in (("1", "C"), ("2", locale.setlocale(locale.LC_CTYPE) or "C.UTF-8"))
    }
    here = [asdict(d) for group in documents.values() for d in group]
    assert answers == {hashlib.sha256(json.dumps(here).encode()).hexdigest() + "\n"}


def test_listing_the_library_imports_none_of_it():
    program = (
        "import sys, sysconfig\nfrom tasks.demo.corpus import docstrings\nsysconfig.get_paths()\n"
        "before = set(sys.modules)\nlist(docstrings())\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('encodings')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


def test_a_planted_query_has_exactly_its_own_documents_as_sources(documents):
    everything = [d for group in documents.values() for d in group]
    found = {
        query.query_id: {d.text for d in everything if corpus.is_source(query, d)} for query in corpus.demo_queries()
    }
    expected = {fact.fact_id: set(utterances(fact)) for fact in facts()}
    expected |= {passage.passage_id: {passage.text} for passage in passages()}
    expected |= {name: set() for name in found if name.startswith("python-")}
    assert found == expected


def test_queries_ask_for_every_fact_every_passage_and_for_python():
    queries = corpus.demo_queries()
    assert len({query.query_id for query in queries}) == len(queries)
    assert sum("fact_id" in query.truth for query in queries) == len(facts())
    assert sum("passage_id" in query.truth for query in queries) == len(passages())
    assert 1 <= sum(not query.truth for query in queries) <= 2
    for query in queries:
        assert not query.prompt.endswith(" "), query.query_id
        assert query.completion.startswith(" "), query.query_id
