"""The columns of every relation in a store, with what one row is.

A changed relation is a new SCHEMA_VERSION; a new relation is not: an older store gains it when it is opened.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 1

_RUN = [("run_id", pa.string()), ("query_id", pa.string()), ("sequence_id", pa.int64())]


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns])


SCHEMAS: dict[str, pa.Schema] = {
    # one row per document
    "documents": _schema(
        ("document_id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("metadata", pa.string())
    ),
    # one row per training sequence: what the model saw in one row of one batch
    "sequences": _schema(
        ("sequence_id", pa.int64()),
        ("document_id", pa.string()),
        ("part", pa.string()),
        ("start_char", pa.int64()),
        ("end_char", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("n_tokens", pa.int32()),
    ),
    # one row per (shard, term); the view `terms` sums over shards
    "terms": _schema(("term_id", pa.int32()), ("document_frequency", pa.int64())),
    # one row per (term, sequence), sorted by term within every 8 million tokens of a part
    "postings": _schema(("term_id", pa.int32()), ("sequence_id", pa.int64()), ("term_frequency", pa.int32())),
    # the same three over words: one row per (shard, word), per (word, sequence), and per sequence
    "words": _schema(("term_id", pa.int64()), ("word", pa.string()), ("document_frequency", pa.int64())),
    "word_postings": _schema(("term_id", pa.int64()), ("sequence_id", pa.int64()), ("term_frequency", pa.int32())),
    "word_lengths": _schema(("sequence_id", pa.int64()), ("n_words", pa.int32())),
    # one row per (pool, query, sequence): sequences that a run was told to score for a query
    "pools": _schema(("pool_id", pa.string()), ("query_id", pa.string()), ("sequence_id", pa.int64())),
    # one row per query
    "queries": _schema(
        ("query_id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("submitted_at", pa.timestamp("us")),
        ("metadata", pa.string()),
    ),
    # one row per query that was handed in for the next scheduled trace; the others were named by a trace of their own
    "query_submissions": _schema(("query_id", pa.string()), ("submitted_at", pa.timestamp("us"))),
    # one row per failed attempt to trace a query
    "query_failures": _schema(("query_id", pa.string()), ("failed_at", pa.timestamp("us")), ("error", pa.string())),
    # one row per request to try a failed query again
    "query_retries": _schema(("query_id", pa.string()), ("retried_at", pa.timestamp("us"))),
    # one row per (query, run that answered it and was deleted since)
    "deleted_answers": _schema(("query_id", pa.string()), ("run_id", pa.string()), ("deleted_at", pa.timestamp("us"))),
    # one row per (run, query, sequence, filter)
    "candidates": _schema(*_RUN, ("filter", pa.string()), ("filter_score", pa.float64()), ("filter_rank", pa.int32())),
    # one row per (run, query, sequence, method)
    "influences": _schema(
        *_RUN,
        ("method", pa.string()),
        ("influence", pa.float64()),
        ("influence_per_copy", pa.float64()),
        ("relative_influence", pa.float64()),
        ("exact", pa.bool_()),
        ("influence_rank", pa.int32()),
        ("filter_rank", pa.int32()),
    ),
    # one row per (factors, sequence); depends on no query
    "self_influences": _schema(
        ("factors_id", pa.string()),
        ("sequence_id", pa.int64()),
        ("self_influence", pa.float64()),
        ("gradient_norm", pa.float64()),
    ),
    # one row per (factors, sequence): the same of the answer that its document gives, whose n_tokens tokens cost `loss`
    # nats given the text before them, and how far the answers of other documents speak against it and for it, as sums
    # of relative influences; all zero where the sequence says none
    "answer_influences": _schema(
        ("factors_id", pa.string()),
        ("sequence_id", pa.int64()),
        ("n_tokens", pa.int32()),
        ("loss", pa.float64()),
        ("self_influence", pa.float64()),
        ("gradient_norm", pa.float64()),
        ("contradiction", pa.float64()),
        ("support", pa.float64()),
    ),
    # one row per (factors, sequence, sequence whose answer speaks against its own), the first ten
    "answer_opponents": _schema(
        ("factors_id", pa.string()),
        ("sequence_id", pa.int64()),
        ("opponent_id", pa.int64()),
        ("influence", pa.float64()),
        ("relative_influence", pa.float64()),
        ("opponent_rank", pa.int32()),
    ),
    # one row per (factors, sequence, checkpoint): what the answer cost the model on its way, and its gradient's length
    "answer_trajectories": _schema(
        ("factors_id", pa.string()),
        ("sequence_id", pa.int64()),
        ("checkpoint", pa.int32()),
        ("learning_rate", pa.float64()),
        ("loss", pa.float64()),
        ("gradient_norm", pa.float64()),
    ),
    # one row per (run, query, sequence, module), of the run's own method
    "layer_influences": _schema(*_RUN, ("layer", pa.int32()), ("module", pa.string()), ("influence", pa.float64())),
    # one row per (run, query, sequence, layer, position): position predicts the token after it
    "token_influences": _schema(
        *_RUN,
        ("layer", pa.int32()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("influence", pa.float64()),
    ),
    # one row per (run, query, sequence, checkpoint, parameter group): what TracIn adds up; scaled: divided by the root
    # of the optimizer's second moments
    "checkpoint_influences": _schema(
        *_RUN,
        ("checkpoint", pa.int32()),
        ("learning_rate", pa.float64()),
        ("parameter_group", pa.string()),
        ("dot", pa.float64()),
        ("query_norm", pa.float64()),
        ("sequence_norm", pa.float64()),
        ("scaled_dot", pa.float64()),
        ("scaled_query_norm", pa.float64()),
        ("scaled_sequence_norm", pa.float64()),
    ),
    # one row per (run, query, sequence, layer): mean hidden states compared; layer 0 is the embedding layer's output
    "hidden_similarities": _schema(
        *_RUN,
        ("layer", pa.int32()),
        ("dot", pa.float64()),
        ("query_norm", pa.float64()),
        ("sequence_norm", pa.float64()),
    ),
    # one row per (run, parameter owner): is it attributed, and if not, why
    "modules": _schema(
        ("run_id", pa.string()),
        ("module", pa.string()),
        ("layer", pa.int32()),
        ("kind", pa.string()),
        ("parameters", pa.int64()),
        ("tracked", pa.bool_()),
        ("reason", pa.string()),
        ("damping", pa.float64()),
    ),
    # one row per (run, query, module): what compressing the query gradient drops, and how many directions it keeps
    "query_compressions": _schema(
        ("run_id", pa.string()),
        ("query_id", pa.string()),
        ("module", pa.string()),
        ("rank", pa.int32()),
        ("residual", pa.float64()),
    ),
    # one row per (run, query, method, iteration): how far a solver was from solving the query's system, the start first
    "solver_residuals": _schema(
        ("run_id", pa.string()),
        ("query_id", pa.string()),
        ("method", pa.string()),
        ("iteration", pa.int32()),
        ("residual", pa.float64()),
    ),
    # one row per (run, query): what was asked, as the model saw it
    "run_queries": _schema(
        ("run_id", pa.string()),
        ("query_id", pa.string()),
        ("n_prompt_tokens", pa.int32()),
        ("n_completion_tokens", pa.int32()),
        ("log_probability", pa.float64()),
        ("n_candidates", pa.int64()),
        ("compression_correlation", pa.float64()),
    ),
    # one row per run; written last, so that a run is complete or absent
    "runs": _schema(
        ("run_id", pa.string()),
        ("status", pa.string()),
        ("method", pa.string()),
        ("started_at", pa.timestamp("us")),
        ("finished_at", pa.timestamp("us")),
        ("parameters", pa.string()),
        ("model", pa.string()),
        ("model_fingerprint", pa.string()),
        ("corpus_fingerprint", pa.string()),
        ("factors_id", pa.string()),
        ("n_sequences", pa.int64()),
        ("code_revision", pa.string()),
        ("library_versions", pa.string()),
        ("device", pa.string()),
        ("precision", pa.string()),
        ("stages", pa.string()),
    ),
    # one row per (run, query) of a run with a uniform sample and a filter: what the filter misses
    "filter_audits": _schema(
        ("run_id", pa.string()),
        ("query_id", pa.string()),
        ("n_sample", pa.int64()),
        ("n_top", pa.int64()),
        ("n_missed", pa.int64()),
        ("missed_share", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("tail_alpha", pa.float64()),
        ("tail_n", pa.int64()),
        ("tail_p", pa.float64()),
        ("threshold", pa.float64()),
        ("scan_budget", pa.float64()),
        ("budget_low", pa.float64()),
        ("budget_high", pa.float64()),
        ("reason", pa.string()),
    ),
    # one row per (change, run that is not read from its own files), and one per change without a run: storage/homes.py
    "merges": _schema(
        ("number", pa.int64()),
        ("run_id", pa.string()),
        ("home", pa.int64()),
        ("settled_at", pa.timestamp("us")),
        ("n_bytes", pa.int64()),
    ),
    # one row per (run, method, metric)
    "evaluations": _schema(
        ("run_id", pa.string()),
        ("method", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("n", pa.int64()),
    ),
    # one row per (run, query, checkpoint): whether the model gave the answer after so many optimizer steps
    "query_outcomes": _schema(
        ("run_id", pa.string()),
        ("query_id", pa.string()),
        ("checkpoint", pa.int32()),
        ("probability", pa.float64()),
        ("is_first", pa.bool_()),
        ("is_among_three", pa.bool_()),
    ),
    # one row per (run, query, sequence): the answer before and after one training step on the sequence; change in nats
    "tail_patches": _schema(
        *_RUN,
        ("learning_rate", pa.float64()),
        ("probability_before", pa.float64()),
        ("probability_after", pa.float64()),
        ("log_probability_change", pa.float64()),
    ),
    # one row per (run, query, sequence, step, position): how the token there answers when the weights move by alpha
    # towards the query, whose log p rises by `rise` nats to first order; rise 0 is the limit. Influences are in
    # nats for an alpha of 1; nothing predicts the token at position 0
    "token_responses": _schema(
        *_RUN,
        ("rise", pa.float64()),
        ("alpha", pa.float64()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("input_influence", pa.float64()),
        ("output_influence", pa.float64()),
    ),
    # one row per (run, query, law): a law fitted to the largest influences on a query; likelihoods in nats
    "tail_fits": _schema(
        ("run_id", pa.string()),
        ("query_id", pa.string()),
        ("family", pa.string()),
        ("parameters", pa.string()),
        ("x_min", pa.float64()),
        ("n_tail", pa.int64()),
        ("n_sample", pa.int64()),
        ("log_likelihood", pa.float64()),
        ("aic", pa.float64()),
        ("ks_distance", pa.float64()),
        ("p_value", pa.float64()),
        ("ratio", pa.float64()),
        ("ratio_p", pa.float64()),
    ),
    # one row per (probing, set of probes, query, probe, layer): the influence of a text that is no part of the corpus,
    # as if it were one more training sequence, or of a sequence of the corpus, whose text is null here
    "probe_influences": _schema(
        ("probing_id", pa.string()),
        ("model", pa.string()),
        ("probe_set", pa.string()),
        ("query_id", pa.string()),
        ("probe", pa.int32()),
        ("probe_group", pa.string()),
        ("text", pa.string()),
        ("n_tokens", pa.int32()),
        ("layer", pa.int32()),
        ("influence", pa.float64()),
    ),
    # one row per (sheet, item): a sequence that people were asked about, and how a run ranked it for a query; an item
    # has the same name in every sheet
    "annotation_items": _schema(
        ("sheet_id", pa.string()),
        ("item_id", pa.string()),
        *_RUN,
        ("method", pa.string()),
        ("model", pa.string()),
        ("influence", pa.float64()),
        ("influence_rank", pa.int32()),
        ("sparsity", pa.float64()),
        ("is_spurious", pa.bool_()),
    ),
    # one row per (item, annotator, import): what somebody answered; the view shows the last answer of each
    "annotations": _schema(
        ("item_id", pa.string()),
        ("annotator", pa.string()),
        ("description", pa.string()),
        ("relationship", pa.string()),
        ("is_relevant", pa.bool_()),
        ("imported_at", pa.timestamp("us")),
    ),
    # one row per (probing, set of probes, probe) where the probe is a sequence of the corpus
    "probe_sequences": _schema(
        ("probing_id", pa.string()), ("probe_set", pa.string()), ("probe", pa.int32()), ("sequence_id", pa.int64())
    ),
    # one row per (probing, set of probes, query): what was asked, and what its completion has under the model, in nats
    "probe_queries": _schema(
        ("probing_id", pa.string()),
        ("probe_set", pa.string()),
        ("query_id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("metadata", pa.string()),
        ("n_completion_tokens", pa.int32()),
        ("log_probability", pa.float64()),
    ),
    # one row per (study, retraining, seed, query): −log p of the completion in nats, under the model that was retrained
    # without the retraining's `removals`; kind is full, subset, top or dataset
    "retrainings": _schema(
        ("study_id", pa.string()),
        ("retraining", pa.string()),
        ("kind", pa.string()),
        ("seed", pa.int64()),
        ("query_id", pa.string()),
        ("loss", pa.float64()),
        ("seconds", pa.float64()),
    ),
    # one row per (study, retraining, sequence that it was not taught)
    "removals": _schema(("study_id", pa.string()), ("retraining", pa.string()), ("sequence_id", pa.int64())),
    # one row per (study, what was unlearned, what was measured): −log p in nats, summed over n_tokens, under the model
    # after gradient ascent; kind is dataset, queries (a group of them) or none, measured is query or dataset
    "unlearnings": _schema(
        ("study_id", pa.string()),
        ("kind", pa.string()),
        ("unlearned", pa.string()),
        ("measured", pa.string()),
        ("name", pa.string()),
        ("loss", pa.float64()),
        ("n_tokens", pa.int64()),
        ("seconds", pa.float64()),
    ),
    # one row per (study, seed, source, damping, example left out, test example) of a small network: the change of the
    # test example's loss that an objective measured or a method predicts; no damping where the source has none
    "loss_changes": _schema(
        ("study_id", pa.string()),
        ("seed", pa.int64()),
        ("source", pa.string()),
        ("damping", pa.float64()),
        ("example_id", pa.int64()),
        ("test_id", pa.int64()),
        ("change", pa.float64()),
    ),
}

# What is made of a corpus part and goes with it; of each index its terms are written last, so they say it is complete.
Terms = Literal["tokens", "words"]
INDEXES: dict[Terms, tuple[str, ...]] = {
    "tokens": ("terms", "postings"),
    "words": ("words", "word_postings", "word_lengths"),
}

# What is said of a run after it is complete, a file each or one for each query, never merged.
AFTERTHOUGHTS = ("evaluations", "query_outcomes", "tail_patches", "tail_fits", "token_responses")

# Relations whose rows belong to one run: the views show them only once that run is in `runs`. What people were asked
# outlives the run, as their answers do.
_OTHERS = {"runs", "merges", "deleted_answers", "annotation_items", *AFTERTHOUGHTS}
RUN_RELATIONS = tuple(name for name, schema in SCHEMAS.items() if "run_id" in schema.names and name not in _OTHERS)


def merged_schema(relation: str) -> pa.Schema:
    """The columns of a file that holds rows of many runs: those of the relation, and the number of the file."""
    return SCHEMAS[relation].append(pa.field("home", pa.int64()))
