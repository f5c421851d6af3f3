"""What a filter misses: counts beside plain Python and by hand, what is not told and why, where it is shown."""

from __future__ import annotations

import io
import math
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from storage.catalog import run_user_sql
from storage.schemas import SCHEMAS
from storage.store import Store, create_store, open_store
from storage.tables import has_part, write_part
from tasks.audit import audit_filter

NOW = datetime(2026, 1, 2, 3, 4)


def write(store: Store, relation: str, run: str, *rows: tuple) -> None:
    """Write rows whose values stand in the order of the relation's columns."""
    columns = zip(*rows, strict=True) if rows else [[] for _ in SCHEMAS[relation]]
    write_part(store, relation, run, columns=dict(zip(SCHEMAS[relation].names, map(list, columns), strict=True)))


def scored(
    store: Store, influences: dict[str, list[float]], filters: dict[str, dict[str, list[int]]], run: str = "r1"
) -> Store:
    """A run before its row: influences by query and sequence, candidates by filter and query."""
    ranked = {"bm25", "tfidf"}
    write(store, "candidates", run, *(
        (run, query, s, name, -float(k) if name in ranked else None, k + 1 if name in ranked else None)
        for name, by_query in filters.items() for query, found in by_query.items() for k, s in enumerate(found)
    ))  # fmt: skip
    candidates = {(query, s) for by_query in filters.values() for query, found in by_query.items() for s in found}
    own = [(run, q, s, "ekfac", influences[q][s], None, None, False, 1, None) for q, s in sorted(candidates)]
    # Another method ranks the other way round, and must not be asked.
    other = [(run, q, s, "identity", -influences[q][s], None, None, False, 1, None) for q, s in sorted(candidates)]
    write(store, "influences", run, *own, *other)
    return store


def completed(store: Store, *queries: str, run: str = "r1") -> None:
    """Give the run its rows, so that its tables are seen."""
    write(store, "queries", run, *((name, "prompt", " completion", NOW, "{}") for name in queries))
    write(store, "run_queries", run, *((run, name, 3, 1, -1.0, 20, None) for name in queries))
    parameters = '{"method": {"damping": {"absolute": null, "relative": 0.1}}, "fit": {"sequences": 10}}'
    facts = {"run_id": run, "status": "completed", "method": "ekfac", "started_at": NOW, "finished_at": NOW,
             "parameters": parameters, "n_sequences": 1000}  # fmt: skip
    write(store, "runs", run, tuple(facts.get(name) for name in SCHEMAS["runs"].names))


def ask(store: Store, statement: str) -> list[dict]:
    columns, found = run_user_sql(store, statement)
    return [dict(zip(columns, row, strict=True)) for row in found]


FALLING = [20.0 - s for s in range(30)]  # sequence s: 20, 19, … 1 (sequence 19), 0, −1, …


def test_the_missed_of_the_top_ten_by_hand(tmp_path):
    """The sample's ten largest are 0 … 9; BM25 has 0, 1, 5, TF-IDF 1, 7: six are missed, whoever found the others."""
    filters = {"uniform": {"q": list(range(12))}, "bm25": {"q": [0, 1, 5, 14]}, "tfidf": {"q": [1, 7, 15]}}
    (audit,) = audit_filter.fn(scored(create_store(tmp_path / "s"), {"q": FALLING}, filters), "r1", "ekfac")
    assert (audit.n_sample, audit.n_top, audit.n_missed) == (12, 10, 6)
    # Wilson: (.6 + .192073 ± 1.959964 √(.024 + .00960365)) / 1.384146 = (.792073 ± .359287) / 1.384146
    assert (audit.missed_share, audit.ci_low, audit.ci_high) == pytest.approx((0.6, 0.312674, 0.831821), abs=2e-6)


def test_only_positive_influences_are_missed(tmp_path):
    filters = {"uniform": {"q": [17, 18, 19, 20, 21, 22, 23, 24, 25, 26]}, "bm25": {"q": [18]}}
    (audit,) = audit_filter.fn(scored(create_store(tmp_path / "s"), {"q": FALLING}, filters), "r1", "ekfac")
    assert (audit.n_sample, audit.n_top, audit.n_missed) == (10, 3, 2)


def test_a_sample_without_positive_influences_has_no_share_and_says_so(tmp_path):
    filters = {"uniform": {"q": [21, 22, 23]}, "bm25": {"q": [0, 1]}}
    (audit,) = audit_filter.fn(scored(create_store(tmp_path / "s"), {"q": FALLING}, filters), "r1", "ekfac")
    assert (audit.n_top, audit.n_missed, audit.missed_share, audit.ci_low) == (0, 0, None, None)
    assert "no tail: 0 of 3 influences are positive, 40 of 400 needed" in audit.reason


def test_a_filter_that_found_nothing_missed_everything(tmp_path):
    (audit,) = audit_filter.fn(
        scored(create_store(tmp_path / "s"), {"q": FALLING}, {"uniform": {"q": [3, 4, 5]}}), "r1", "ekfac"
    )
    assert (audit.n_top, audit.n_missed, audit.ci_high, audit.threshold) == (3, 3, 1.0, None)
    assert audit.reason.startswith("no budget: the filter kept 0 sequences, a tenth influence takes 10; no tail: ")


def test_a_threshold_within_the_sample_is_counted(tmp_path):
    """The filter's tenth is 9 (sequence 11); of the sample 4, 8, 10, 11 reach it: 10 · 6 / 4 = 15."""
    filters = {"uniform": {"q": [4, 8, 10, 11, 12, 25]}, "bm25": {"q": [*range(2, 12), 28]}}
    (audit,) = audit_filter.fn(scored(create_store(tmp_path / "s"), {"q": FALLING}, filters), "r1", "ekfac")
    low, high = stats.beta.ppf(0.025, 4, 3), stats.beta.ppf(0.975, 5, 2)  # Clopper and Pearson's, of the share 4/6
    assert (audit.threshold, audit.scan_budget) == (9.0, pytest.approx(15.0))
    assert (audit.budget_low, audit.budget_high) == pytest.approx((10 / high, 10 / low))
    assert audit.reason.startswith("empirical share: 4 of the sample reach the threshold; no tail: ")


def test_a_threshold_beyond_a_small_sample_has_no_budget(tmp_path):
    filters = {"uniform": {"q": [12, 13]}, "bm25": {"q": list(range(10))}}
    (audit,) = audit_filter.fn(scored(create_store(tmp_path / "s"), {"q": FALLING}, filters), "r1", "ekfac")
    assert (audit.threshold, audit.scan_budget, audit.tail_alpha) == (11.0, None, None)
    assert audit.reason.startswith("no budget: none of the sample reaches the threshold; no tail: 2 of 2 influences")


@pytest.mark.parametrize("filters", [
    {"bm25": {"q": [0, 1, 2]}},
    {"none": {"q": list(range(30))}},
    {"none": {"q": list(range(30))}, "uniform": {"q": [1, 2]}},
    {},
])  # fmt: skip
def test_without_a_sample_or_a_filter_nothing_is_written(tmp_path, filters):
    store = scored(create_store(tmp_path / "s"), {"q": FALLING}, filters)
    assert audit_filter.fn(store, "r1", "ekfac") == []
    assert not has_part(store, "filter_audits", "r1")


def large_run(path: Path) -> tuple[Store, dict, dict]:
    """Three queries over 5,000 sequences, heavy tails of both signs, filters that have some of the largest."""
    rng = np.random.default_rng(4)
    influences, filters = {}, {"uniform": {}, "bm25": {}, "tfidf": {}}
    sample = sorted(rng.choice(5000, 2000, replace=False).tolist())
    for k, name in enumerate(("a", "b", "c")):
        values = (rng.pareto(1.5 + k, 5000) + 0.01) * rng.choice([-1, 1], 5000)
        order = np.argsort(-values)
        influences[name] = values.tolist()
        filters["uniform"][name] = sample
        filters["bm25"][name] = order[rng.permutation(200)[:90]].tolist()
        filters["tfidf"][name] = rng.choice(5000, 300, replace=False).tolist()
    filters["bm25"]["c"] = order[:60].tolist()
    return scored(create_store(path), influences, filters), influences, filters


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    store, influences, filters = large_run(tmp_path_factory.mktemp("audit") / "s")
    return store, influences, filters, audit_filter.fn(store, "r1", "ekfac")


def test_every_column_is_what_plain_python_finds(large):
    _, influences, filters, audits = large
    assert [audit.query_id for audit in audits] == ["a", "b", "c"]
    for audit in audits:
        values, name = influences[audit.query_id], audit.query_id
        found = set(filters["bm25"][name]) | set(filters["tfidf"][name])
        sample = sorted(filters["uniform"][name], key=lambda s: -values[s])
        top = [s for s in sample[:20] if values[s] > 0]  # 1 % of 2,000
        assert (audit.n_sample, audit.n_top) == (2000, len(top))
        assert audit.n_missed == sum(s not in found for s in top)
        assert audit.threshold == sorted((values[s] for s in found), reverse=True)[9]
        tail = [values[s] for s in sample[:21]]
        assert audit.tail_n == 20
        assert audit.tail_alpha == pytest.approx(20 / sum(math.log(x / tail[20]) for x in tail[:20]), rel=1e-9)
        assert 0 <= audit.tail_p <= 1
        reaching = sum(values[s] >= audit.threshold for s in sample)
        if reaching:
            assert audit.scan_budget == pytest.approx(10 * 2000 / reaching)
            assert audit.reason == f"empirical share: {reaching} of the sample reach the threshold"


def test_beyond_the_sample_the_budget_is_the_fitted_tail_s(tmp_path):
    """A sample of Pareto quantiles with exponent 2, and a filter whose tenth influence is ten times its largest."""
    sample = [(1 - (k + 0.5) / 400) ** -0.5 for k in range(400)]
    influences = {"q": sample + [10 * max(sample)] * 10}
    filters = {"uniform": {"q": list(range(400))}, "bm25": {"q": list(range(400, 410))}}
    (audit,) = audit_filter.fn(scored(create_store(tmp_path / "s"), influences, filters), "r1", "ekfac")
    largest = sorted(sample, reverse=True)
    assert audit.n_missed == audit.n_top == 10
    assert audit.reason == "fitted tail: none of the sample reaches the threshold"
    assert audit.tail_alpha == pytest.approx(2.0, rel=0.1)
    # P = (20 / 400) · (x_min / threshold)^alpha
    expected = 10 * (400 / 20) * (10 * largest[0] / largest[20]) ** audit.tail_alpha
    assert audit.scan_budget == pytest.approx(expected, rel=1e-9)
    assert audit.budget_low < audit.scan_budget < audit.budget_high


def test_rows_are_seen_when_the_run_is_complete_and_are_the_same_again(large, tmp_path):
    store = Store(shutil.copytree(large[0].root, tmp_path / "s").resolve())
    assert ask(store, "from filter_audits") == []
    completed(store, "a", "b", "c")
    stored = ask(store, "from filter_audits order by query_id")
    assert len(stored) == 3
    audit_filter.fn(store, "r1", "ekfac")
    assert ask(store, "from filter_audits order by query_id") == stored


def test_the_macro_tells_what_is_stored_and_counts_anew_for_another_top(large, tmp_path):
    store = Store(shutil.copytree(large[0].root, tmp_path / "s").resolve())
    completed(store, "a", "b", "c")
    stored = ask(store, "from filter_audits order by query_id")
    for row in stored:
        (told,) = ask(store, f"from filter_audit('{row['query_id']}')")
        assert list(told) == SCHEMAS["filter_audits"].names
        for column, value in row.items():
            assert told[column] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), column
    values, found = large[1]["b"], set(large[2]["bm25"]["b"]) | set(large[2]["tfidf"]["b"])
    top = sorted(large[2]["uniform"]["b"], key=lambda s: -values[s])[:100]
    (told,) = ask(store, "from filter_audit('b', run := 'r1', share := 0.05)")
    missed = sum(s not in found for s in top)
    interval = stats.binomtest(missed, 100).proportion_ci(0.95, method="wilson")
    assert (told["n_top"], told["n_missed"]) == (100, missed)
    assert (told["ci_low"], told["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert ask(store, "select n_top from filter_audit('b', share := 0.0, least := 3)") == [{"n_top": 3}]


def test_the_macro_says_nothing_of_a_run_without_a_sample(tmp_path):
    store = scored(create_store(tmp_path / "s"), {"q": FALLING}, {"bm25": {"q": [0, 1, 2]}})
    audit_filter.fn(store, "r1", "ekfac")
    completed(store, "q")
    assert ask(store, "from filter_audit('q')") == []


def test_a_store_from_before_the_audit_gains_its_relation(tmp_path):
    store = create_store(tmp_path / "s")
    shutil.rmtree(store.relation("filter_audits"))
    assert ask(open_store(tmp_path / "s"), "from filter_audits") == []


def printed(store: Store) -> str:
    from flows.terminal import print_answers

    console = Console(file=io.StringIO(), width=120)
    print_answers(str(store.root), "r1", console)
    return " ".join(console.file.getvalue().split())


def test_the_terminal_tells_it_in_a_line(tmp_path):
    filters = {"uniform": {"q": [4, 8, 10, 11, 12, 25]}, "bm25": {"q": [*range(2, 12), 28]}}
    store = scored(create_store(tmp_path / "s"), {"q": FALLING}, filters)
    audit_filter.fn(store, "r1", "ekfac")
    completed(store, "q")
    assert (
        "of the 5 largest influences of a uniform sample of 6 the filter had 4 (missed 20%, 95 % interval 4% to 62%) · "
        "to match its top 10 by scanning at random: about 15 sequences (95 % interval 10 to 45; empirical share: "
        "4 of the sample reach the threshold; no tail: 5 of 6 influences are positive, 40 of 400 needed)"
    ) in printed(store)


def test_the_terminal_tells_the_tail(large, tmp_path):
    store = Store(shutil.copytree(large[0].root, tmp_path / "s").resolve())
    completed(store, "a", "b", "c")
    assert printed(store).count("power-law tail with survival exponent α = ") == 3


def test_without_a_sample_the_terminal_is_silent(tmp_path):
    store = scored(create_store(tmp_path / "s"), {"q": FALLING}, {"bm25": {"q": [0, 1, 2]}})
    audit_filter.fn(store, "r1", "ekfac")
    completed(store, "q")
    assert "uniform sample" not in printed(store)


@pytest.mark.usefixtures("prefect_db")
def test_a_traced_run_with_a_sample_is_audited_from_its_own_tables(tmp_path, gpt2, corpus):
    from flows.parameters import ModelParameters, QueryParameters, TraceParameters
    from flows.trace import trace
    from tasks.candidates import CandidateParameters
    from tasks.compute import ComputeParameters
    from tasks.corpus import CorpusParameters

    run = trace(TraceParameters(
        store=str(tmp_path / "s"), model=ModelParameters(name=str(gpt2)),
        queries=(QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),),
        corpus=CorpusParameters(inputs=(str(corpus),)), compute=ComputeParameters(precision="float32"),
        candidates=CandidateParameters(top_k=12, unfiltered=30),
    ))  # fmt: skip
    store = open_store(tmp_path / "s")
    audit_filter.fn(store, run, "ekfac")
    kinds = ask(store, "select sequence_id, list(filter) as filters from candidates group by all")
    sampled = {row["sequence_id"] for row in kinds if "uniform" in row["filters"]}
    found = {row["sequence_id"] for row in kinds if "bm25" in row["filters"]}
    ranked = ask(store, "select sequence_id from influences where method = 'ekfac' and influence > 0 "
                        "order by influence desc, sequence_id")  # fmt: skip
    top = [row["sequence_id"] for row in ranked if row["sequence_id"] in sampled][:10]
    (told,) = ask(store, "from filter_audit('otter')")
    assert (told["n_sample"], told["n_top"], len(found)) == (30, len(top), 12)
    assert told["n_missed"] == sum(s not in found for s in top)
