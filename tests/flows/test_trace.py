"""The walk end to end on a tiny model: invariances, shares through SQL, resumption, what is reused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import worlds

from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.errors import InputError, MismatchError
from storage.store import open_store
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.influence.errors import InfluenceError
from tasks.influence.sweep import sweep
from tasks.methods import MethodParameters

pytestmark = pytest.mark.usefixtures("prefect_db")

QUERIES = (
    QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),
    QueryParameters(prompt="Nobody saw the viper", completion=" leave.", query_id="viper"),
)


def parameters(store: Path, model: Path, *inputs: Path, batch_size: int = 16, cluster: str = "none", **changes):
    return TraceParameters(
        store=str(store),
        model=ModelParameters(name=str(model)),
        queries=QUERIES,
        corpus=CorpusParameters(inputs=tuple(map(str, inputs))),
        compute=ComputeParameters(batch_size=batch_size, precision="float32"),
        cluster=cluster,
        **{"method": MethodParameters(rescore=5, beside=("identity", "bm25")), **changes},
    )


def ask(store: Path, statement: str) -> list[tuple]:
    return run_user_sql(open_store(store), statement)[1]


TABLES = {
    "influences": ("query_id, method, sequence_id", "influence", "exact, filter_rank"),
    "layer_influences": ("query_id, sequence_id, module", "influence", "layer"),
    "token_influences": ("query_id, sequence_id, layer, position", "influence", "token_id, token"),
    "self_influences": ("sequence_id", "self_influence", "1"),
}


def tables(store: Path) -> dict[str, list[tuple]]:
    return {
        name: ask(store, f"select {keys}, {rest}, {value} from {name} order by {keys}")
        for name, (keys, value, rest) in TABLES.items()
    }


def largest_difference(a: dict[str, list[tuple]], b: dict[str, list[tuple]]) -> float:
    """Of all values, relative to the largest of their table; keys must agree row for row."""
    worst = 0.0
    for name in a:
        assert [row[:-1] for row in a[name]] == [row[:-1] for row in b[name]], name
        scale = max(abs(row[-1]) for row in a[name])
        worst = max(worst, *(abs(x[-1] - y[-1]) / scale for x, y in zip(a[name], b[name], strict=True)))
    return worst


@pytest.fixture(scope="module")
def traced(tmp_path_factory, gpt2, corpus, prefect_db):
    store = tmp_path_factory.mktemp("traced") / "s"
    trace(parameters(store, gpt2, corpus))
    return store


def test_every_relation_of_a_run_has_rows(traced):
    counts = {name: ask(traced, f"select count(*) from {name}")[0][0] for name in (
        "documents", "sequences", "postings", "terms", "queries", "candidates", "influences", "self_influences",
        "layer_influences", "token_influences", "modules", "query_compressions", "run_queries", "runs",
    )}  # fmt: skip
    assert min(counts.values()) > 0, counts


def test_layers_and_tokens_sum_to_exact_influences_through_sql(traced):
    for table in ("layer_influences", "token_influences"):
        worst = ask(
            traced,
            f"select max(abs(s.total - i.influence) / abs(i.influence)), count(*) from influences i join "
            f"(select query_id, sequence_id, sum(influence) as total from {table} group by all) s "
            "using (query_id, sequence_id) where i.exact",
        )
        assert worst[0][0] < 1e-6
        assert worst[0][1] >= 10


@pytest.mark.parametrize("batch_size", [1, 32])
def test_batch_size_does_not_show(tmp_path, gpt2, corpus, traced, batch_size):
    trace(parameters(tmp_path / "s", gpt2, corpus, batch_size=batch_size))
    assert largest_difference(tables(traced), tables(tmp_path / "s")) < 2e-5


@pytest.fixture
def one_module_at_a_time(monkeypatch):
    from storage.settings import settings

    with monkeypatch.context() as patch:
        patch.setenv("HEADWATER_MATRIX_MEMORY_GIB", "1e-9")
        settings.cache_clear()
        yield
    settings.cache_clear()


def test_matrices_of_one_module_at_a_time_give_the_same_tables(
    tmp_path, gpt2, corpus, traced, monkeypatch, one_module_at_a_time
):
    passes = []

    def counting(model, modules, *rest):
        passes.append(len(modules))
        return sweep(model, modules, *rest)

    monkeypatch.setattr("tasks.factors.sweep", counting)
    monkeypatch.setattr("tasks.scores.sweep", counting)
    trace(parameters(tmp_path / "s", gpt2, corpus))
    exact = [4] * 2  # each query's top sequences, scored again
    assert passes == [1] * 12 + exact  # four modules: covariances, eigenvalues, scores
    assert largest_difference(tables(traced), tables(tmp_path / "s")) < 2e-6


def test_full_rank_query_gradients_score_as_the_exact_ones(tmp_path, gpt2, corpus):
    """No top sequence is scored again, so that every number comes from the factorised gradients."""
    compressed, exact = tmp_path / "compressed", tmp_path / "exact"
    trace(parameters(compressed, gpt2, corpus, method=MethodParameters(rank=4096, rescore=0)))
    trace(parameters(exact, gpt2, corpus, method=MethodParameters(rank=1, rescore=1000)))
    assert ask(compressed, "select count(*) filter (exact), max(residual) from influences, query_compressions") == [
        (0, 0.0)
    ]
    assert ask(exact, "select bool_and(exact), min(residual) > 0.01 from influences, query_compressions") == [
        (True, True)
    ]
    for name in ("influences", "layer_influences"):
        keys, value, _ = TABLES[name]
        found, expected = (ask(s, f"select {value} from {name} order by {keys}") for s in (compressed, exact))
        scale = max(abs(v) for (v,) in expected)
        assert max(abs(a - b) for (a,), (b,) in zip(found, expected, strict=True)) <= 1e-6 * scale


def test_block_diagonal_covariances_change_the_scores_a_little(tmp_path, gpt2, corpus, traced):
    store = shutil.copytree(traced, tmp_path / "s")
    run = trace(parameters(store, gpt2, corpus, fit=FitParameters(blocks=2)))
    first = ask(traced, "select run_id from runs order by finished_at limit 1")[0][0]
    compared = ask(store, f"from compare_runs('{first}', '{run}')")
    assert len(compared) == 2
    for _, n, pearson, spearman, _ in compared:
        assert n > 10
        assert 0.9 < spearman < 1.0
        assert 0.9 < pearson < 1.0


def test_a_fit_on_too_few_sequences_says_so_in_the_coverage(tmp_path, gpt2, corpus):
    trace(parameters(tmp_path / "s", gpt2, corpus, fit=FitParameters(sequences=1)))
    reasons = [r for (r,) in ask(tmp_path / "s", "select reason from modules where tracked")]
    assert all("1 fitted sequences span" in r and "the damping stands alone" in r for r in reasons), reasons
    assert len(reasons) == 4


def test_weights_stored_in_float16_are_computed_in_float32_and_the_coverage_says_so(tmp_path, gpt2, corpus):
    from transformers import AutoModelForCausalLM

    half = shutil.copytree(gpt2, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(gpt2).half().save_pretrained(half)
    trace(parameters(tmp_path / "s", half, corpus))
    reasons = [r for (r,) in ask(tmp_path / "s", "select reason from modules where tracked")]
    assert all(r.endswith("; stored in float16, loaded in float32") for r in reasons), reasons
    assert ask(tmp_path / "s", "select precision from runs") == [("float32",)]


def test_a_dead_module_is_named_with_what_to_do(tmp_path, gpt2, corpus):
    """A module whose output never reaches the logits has no gradient, and so no scale for its damping."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gpt2)
    model.transformer.h[1].mlp.c_proj.weight.data.zero_()  # nothing of c_fc's output goes on
    dead = shutil.copytree(gpt2, tmp_path / "dead")
    model.save_pretrained(dead)
    with pytest.raises(InfluenceError, match=r"h\.1\.mlp\.c_fc: expected mean.*Leave the module out"):
        trace(parameters(tmp_path / "s", dead, corpus))


def test_many_queries_share_a_subspace_and_keep_their_ranking(tmp_path, gpt2, corpus):
    from storage.staging import staged_tensors_path
    from storage.tensors import tensor_names

    queries = tuple(
        QueryParameters(prompt=f"The {a} went to the", completion=f" {p}.", query_id=f"{a}-{p}")
        for a in worlds.ANIMALS for p in worlds.PLACES[:4]
    )  # fmt: skip
    forms: list[str] = []

    def peek(store, key, name):
        path = staged_tensors_path(store, key, name)
        if path.exists() and not forms:
            forms.extend(tensor_names(path))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.gradient_scores.staged_tensors_path", peek)
        many = parameters(tmp_path / "s", gpt2, corpus, method=MethodParameters(rank=4, rescore=1000))
        trace(many.model_copy(update={"queries": queries}))
    assert any(name.endswith(".cores") for name in forms), forms
    correlations = [c for (c,) in ask(tmp_path / "s", "select compression_correlation from run_queries")]
    assert len(correlations) == 32
    assert min(correlations) > 0.98, correlations


@pytest.mark.e2e
def test_three_parts_on_a_dask_cluster_give_the_same_tables(tmp_path, gpt2, traced):
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]
    trace(parameters(tmp_path / "s", gpt2, *files, cluster="local"))
    assert largest_difference(tables(traced), tables(tmp_path / "s")) < 2e-5


def test_the_same_experiment_is_the_same_run_and_writes_nothing(traced, gpt2, corpus):
    def files():
        return {p: p.stat().st_mtime_ns for p in (traced / "tables").rglob("*.parquet")}

    before = files()
    first = ask(traced, "select run_id from runs")
    assert trace(parameters(traced, gpt2, corpus)) == first[0][0]
    assert files() == before


def test_a_run_killed_between_stages_ends_in_the_same_tables(tmp_path, gpt2, corpus, traced, monkeypatch):
    import flows.trace as module

    def power_cut(*args, **kwargs):
        raise KeyboardInterrupt

    store = tmp_path / "s"
    for stage in ("find_candidates", "fit_factors", "prepare_queries", "score_candidates", "score_tokens", "publish",
                  "audit_filter", "complete_run"):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, stage, power_cut)
            with pytest.raises(KeyboardInterrupt):
                trace(parameters(store, gpt2, corpus))
        assert ask(store, "select count(*) from influences")[0][0] == 0, f"visible before {stage}"
    trace(parameters(store, gpt2, corpus))
    assert largest_difference(tables(traced), tables(store)) == 0.0
    assert [p.name for p in (store / "work").iterdir() if p.name.startswith("run-")] == []


def test_a_fit_killed_and_resumed_with_another_memory_budget_is_the_same(tmp_path, gpt2, corpus, traced, monkeypatch):
    import tasks.factors as module

    real, store = module.sum_eigenvalues, tmp_path / "s"

    def power_cut(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "sum_eigenvalues", power_cut)
        patch.setattr(module, "matrix_budget", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            trace(parameters(store, gpt2, corpus))
    assert module.sum_eigenvalues is real
    trace(parameters(store, gpt2, corpus))
    assert largest_difference(tables(traced), tables(store)) < 2e-6


def test_a_plain_gradient_norm_has_one_name_with_a_fit_beside_it_or_without(tmp_path, gpt2, corpus):
    for beside in ((), ("ekfac",)):
        trace(parameters(tmp_path / "s", gpt2, corpus, method=MethodParameters(method="identity", beside=beside)))
    assert ask(tmp_path / "s", "select count(distinct factors_id) from self_influences") == [(1,)]
    rounded = parameters(tmp_path / "s", gpt2, corpus, method=MethodParameters(method="identity"))
    trace(rounded.model_copy(update={"compute": ComputeParameters(precision="bfloat16")}))
    assert ask(tmp_path / "s", "select count(distinct factors_id) from self_influences") == [(2,)]


def test_relative_influence_is_influence_over_the_root_of_self_influence(traced):
    found = ask(
        traced,
        "select i.influence, i.relative_influence, s.self_influence from influences i "
        "join self_influences s using (sequence_id) where method = 'ekfac'",
    )
    for influence, relative, own in found:
        assert relative == pytest.approx(influence / math.sqrt(own), rel=1e-9)


def test_gradient_dot_relative_influence_is_over_the_gradient_norm(traced):
    found = ask(
        traced,
        "select i.influence, i.relative_influence, s.gradient_norm from influences i "
        "join self_influences s using (sequence_id) where method = 'identity'",
    )
    assert len(found) > 10
    for influence, relative, norm in found:
        assert relative == pytest.approx(influence / norm, rel=1e-9)


def test_a_copy_adds_a_share_of_the_influence(traced):
    n = ask(traced, "select count(*) from sequences")[0][0]
    for influence, copy in ask(traced, "select influence, influence_per_copy from influences where method = 'ekfac'"):
        assert copy == pytest.approx(influence / n, rel=1e-12)


def test_another_filter_scores_the_same_sequences_alike(traced, gpt2, corpus):
    run = trace(parameters(traced, gpt2, corpus, candidates=CandidateParameters(filters=("none",)),
                           method=MethodParameters(rescore=5)))  # fmt: skip
    first = ask(traced, f"select run_id from runs where run_id <> '{run}'")[0][0]
    compared = ask(traced, f"from compare_runs('{first}', '{run}')")
    for query_id, n, pearson, spearman, _ in compared:
        assert n > 10, query_id
        assert pearson > 0.99999
        assert spearman > 0.999


def test_a_changed_weight_fits_new_factors_and_makes_a_new_run(tmp_path, gpt2, corpus, traced):
    model = worlds.save_gpt2(tmp_path / "other", seed=1)
    shutil.copy(gpt2 / "tokenizer.json", model / "tokenizer.json")
    store = shutil.copytree(traced, tmp_path / "s")
    before = set((store / "factors").iterdir())
    trace(parameters(store, model, corpus))
    assert len(set((store / "factors").iterdir()) - before) == 1
    assert ask(store, "select count(distinct model_fingerprint) from runs")[0][0] == 2


def test_factors_of_another_model_are_refused_with_both_sides_named(traced, tmp_path, corpus):
    from tasks.metrics import fit_of

    (fit_id,) = [p.name for p in (traced / "factors").iterdir()]
    with pytest.raises(MismatchError, match="which they were fitted on, found model"):
        fit_of(open_store(traced), fit_id, worlds.save_gpt2(tmp_path / "other", seed=5))


def test_a_lexical_method_that_is_not_the_filter_is_refused(tmp_path, gpt2, corpus):
    with pytest.raises(InputError, match="the filters' own scores"):
        trace(parameters(tmp_path / "s", gpt2, corpus, method=MethodParameters(beside=("tfidf",))))


@pytest.mark.parametrize("method", ["kfac", "identity"])
def test_other_methods_fill_the_same_tables(tmp_path, gpt2, corpus, method):
    trace(parameters(tmp_path / "s", gpt2, corpus, method=MethodParameters(method=method, rescore=3)))
    found = ask(
        tmp_path / "s",
        "select count(*), count(relative_influence), bool_and(method = $m) from influences".replace(
            "$m", f"'{method}'"
        ),
    )
    assert found[0][0] == found[0][1] > 10
    assert found[0][2]


def test_a_llama_is_traced_with_three_modules_a_layer(tmp_path, llama, corpus):
    trace(parameters(tmp_path / "s", llama, corpus, fit=FitParameters(fisher="empirical")))
    assert ask(tmp_path / "s", "select count(distinct module), count(distinct layer) from layer_influences") == [(6, 2)]
    tied = ask(tmp_path / "s", "select reason from modules where module = 'lm_head'")
    assert tied == [("shares its weight with model.embed_tokens",)]


def test_a_memorised_sentence_is_led_back_to_its_only_source(tmp_path, gpt2, corpus):
    """A model trained on one corpus with one odd sentence in it: the sentence must rank first."""
    odd = {"document_id": "odd", "text": "The lynx went to the bridge. It sang of the badger there."}
    path = worlds.write_jsonl(tmp_path / "c.jsonl", [*worlds.documents(), odd])
    worlds.train(gpt2, tmp_path / "m", [*worlds.documents(), odd], epochs=6)
    query = QueryParameters(prompt="The lynx went to the bridge. It", completion=" sang of the badger", query_id="odd")
    trace(parameters(tmp_path / "s", tmp_path / "m", path).model_copy(update={"queries": (query,)}))
    assert ask(tmp_path / "s", "select document_id from top_influences('odd', k := 1)") == [("odd",)]
    profile = ask(tmp_path / "s", "select sum(share) from layer_profile('odd')")
    assert profile[0][0] == pytest.approx(1.0)
    source = "(select sequence_id from sequences where document_id = 'odd')"
    heat = ask(tmp_path / "s", f"select next_token, influence from token_heatmap('odd', {source})")
    strongest = max(heat, key=lambda row: row[1])[0].strip()
    assert strongest in "sang of the badger", heat
