from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import worlds
from distributed import Client, LocalCluster
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import storage.embeddings as blocks
from storage.checkpoints import load_model
from storage.embeddings import missing_blocks, part_blocks, read_embeddings, write_embeddings
from storage.errors import InputError, MismatchError, StoreError
from storage.prompts import make_prompt
from storage.sequences import all_sequence_ids, corpus_parts, read_tokens
from storage.store import create_store
from tasks import embeddings as stage
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters, ingest
from tasks.embeddings import embed_corpus
from tasks.fanout import Workers
from tasks.influence.batches import TokenSequence, collate
from tasks.influence.errors import InfluenceError
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import sweep
from tasks.neighbours import embed, nearest

COMPUTE = ComputeParameters(precision="float32", batch_size=7)
PROMPTS = [
    make_prompt("The otter went to the", " harbour.", "otter"),
    make_prompt("Nobody saw the viper, the viper", " leave.", "viper"),
]
ROUNDING = 2e-5  # of float32 passes at width 16


def ingested(path, model, *files):
    store = create_store(path)
    ingest.fn(store, model, CorpusParameters(inputs=tuple(map(str, files))), Workers())
    return store


def embedded(store, model, layer=-1):
    return embed_corpus.fn(store, model, layer, COMPUTE, Workers())


def stored_rows(store, embeddings_id):
    found = [read_embeddings(store, embeddings_id, b) for part in corpus_parts(store) for b in part_blocks(part)]
    return torch.cat(found)


def found(store, model, embeddings_id, top_k=1000, layer=-1, prompts=PROMPTS, workers=None, allowed=None):
    return nearest(store, model, prompts, embeddings_id, layer, top_k, COMPUTE, workers or Workers(), allowed)


def explicit(model, layer, tokens):
    """One sequence at a time in float64, from transformers' own tuple of all hidden states."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    rows = []
    for ids in tokens:
        with torch.no_grad():
            states = network(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        mean = sum(states) / len(ids)
        rows.append(mean / (mean @ mean) ** 0.5)
    return torch.stack(rows)


def explicit_scores(store, model, layer=-1, prompts=PROMPTS):
    """The cosine of every prompt with every sequence: [prompt, sequence]."""
    tokens = read_tokens(store, all_sequence_ids(corpus_parts(store)))
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = explicit(model, layer, [tokenizer(p.prompt + p.completion)["input_ids"] for p in prompts])
    return (asked @ explicit(model, layer, [tokens[i] for i in sorted(tokens)]).T).numpy()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def store(tmp_path_factory, model, corpus):
    return ingested(tmp_path_factory.mktemp("ingested") / "s", model, corpus)


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -3])
def test_an_embedding_is_the_mean_hidden_state_at_unit_length(store, model, layer):
    tokens = read_tokens(store, all_sequence_ids(corpus_parts(store)))
    assert len({len(ids) for ids in tokens.values()}) > 3  # padded
    rows = stored_rows(store, embedded(store, model, layer))
    assert rows.dtype == torch.float32
    expected = explicit(model, layer, [tokens[i] for i in sorted(tokens)])
    np.testing.assert_allclose(rows.double(), expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize("size", [3, 2048])
def test_neighbours_are_those_of_a_sorted_loop(store, model, layer, size, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", size)
    hits = found(store, model, embedded(store, model, layer), top_k=10, layer=layer)
    for mine, expected in zip(hits, explicit_scores(store, model, layer), strict=True):
        assert mine.scores.dtype == np.float64
        np.testing.assert_allclose(mine.scores, np.sort(expected)[::-1][:10], atol=ROUNDING, rtol=0)
        np.testing.assert_allclose(expected[mine.sequence_ids], mine.scores, atol=ROUNDING, rtol=0)
        assert np.all(np.diff(mine.scores) <= 0)


def test_batches_and_padding_do_not_show(store, model):
    tokens = read_tokens(store, all_sequence_ids(corpus_parts(store)))
    sequences = [TokenSequence(i, ids) for i, ids in tokens.items()]
    network = load_model(model)

    def rows(sequences, size):
        return embed(network, sequences, 2, ComputeParameters(precision="float32", batch_size=size))

    together = rows(sequences, 64)
    for other in (rows(sequences, 1), rows(sequences[::-1], 5)):
        torch.testing.assert_close(other, together, atol=ROUNDING, rtol=0)
    short = min(sequences, key=lambda s: len(s.token_ids))
    long = max(sequences, key=lambda s: len(s.token_ids))
    alone, beside = rows([short], 1)[0], rows([short, long], 2)[0 if short.sequence_id < long.sequence_id else 1]
    torch.testing.assert_close(alone, beside, atol=ROUNDING, rtol=0)


def test_a_sequence_of_one_token_is_that_token(store, model):
    row = embed(load_model(model), [TokenSequence(0, [5])], 1, COMPUTE)
    np.testing.assert_allclose(row.double(), explicit(model, 1, [[5]]), atol=ROUNDING, rtol=0)


def test_a_copied_text_is_its_own_nearest_neighbour(store, model):
    texts = [d["text"] for d in worlds.documents()]
    copies = [make_prompt(text[: len(text) // 2], text[len(text) // 2 :], f"copy{k}") for k, text in enumerate(texts)]
    for k, hits in enumerate(found(store, model, embedded(store, model), top_k=1, prompts=copies)):
        assert hits.sequence_ids.tolist() == [k]
        assert hits.scores[0] == pytest.approx(1.0, abs=1e-6)


def test_only_what_is_missing_is_computed(tmp_path, gpt2, monkeypatch):
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]
    store = ingested(tmp_path / "s", gpt2, *files)
    name = embedded(store, gpt2)
    before = stored_rows(store, name)
    shutil.rmtree(next((store.root / "embeddings" / name).glob("p00001-*")))
    computed, real = [], stage.embed
    monkeypatch.setattr(
        stage, "embed", lambda network, some, *rest: computed.extend(some) or real(network, some, *rest)
    )
    assert embedded(store, gpt2) == name
    middle = corpus_parts(store)[1]
    assert [s.sequence_id for s in computed] == list(range(middle.first_sequence_id, middle.end_sequence_id))
    assert torch.equal(stored_rows(store, name), before)
    computed.clear()
    embedded(store, gpt2)
    assert computed == []


def test_a_killed_pass_keeps_its_blocks(tmp_path, gpt2, corpus, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    store = ingested(tmp_path / "s", gpt2, corpus)
    calls, real = [], stage.embed_block

    def power_cut(job):
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(job)

    monkeypatch.setattr(stage, "embed_block", power_cut)
    with pytest.raises(KeyboardInterrupt):
        embedded(store, gpt2)
    name = embedded(store, gpt2)
    assert [job.block.first_sequence_id for job in calls] == [0, 16, 32, 32]
    assert missing_blocks(store, name, corpus_parts(store)) == []


def test_the_id_names_what_an_embedding_is_made_from(tmp_path, model, store):
    same, changed = shutil.copytree(model, tmp_path / "same"), shutil.copytree(model, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    last = embedded(store, model, -1)
    assert embedded(store, same, -1) == last
    assert embedded(store, model, 2) == last  # of two layers
    assert len({last, embedded(store, changed, -1), embedded(store, model, 1), embedded(store, model, 0)}) == 4
    source = json.loads((store.root / "embeddings" / last / "manifest.json").read_text())
    assert (source["layer"], source["precision"]) == (2, "torch.float32")


def test_embeddings_of_another_model_or_layer_are_refused(store, gpt2, llama, model):
    name = embedded(store, model)
    with pytest.raises(MismatchError, match=name):
        found(store, model, name, layer=1)
    with pytest.raises(MismatchError, match=name):
        found(store, llama if model == gpt2 else gpt2, name)


@pytest.mark.parametrize("layer", [3, -4, 100])
def test_a_layer_that_the_model_has_not_is_refused_with_the_range(store, model, layer):
    with pytest.raises(InputError, match=rf"layer {layer}: expected 0 to 2, or -1 to -3 .*2 layers"):
        embedded(store, model, layer)


def test_equal_rows_go_by_their_ids_whatever_block_they_are_in(tmp_path, monkeypatch):
    """A wide row: from 48 numbers on, the last bits of a matrix product depend on how many rows it has."""
    model = worlds.save_gpt2(tmp_path / "wide", width=64)
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[24 * k : 24 * k + 24]) for k in range(2)]
    store = ingested(tmp_path / "s", model, *files)
    torch.manual_seed(0)
    row = torch.nn.functional.normalize(torch.randn(64), dim=0)
    for size in (1, 5, 23, 24):
        monkeypatch.setattr(blocks, "BLOCK", size)
        name = embedded(store, model)
        for block in (b for part in corpus_parts(store) for b in part_blocks(part)):
            n = block.end_sequence_id - block.first_sequence_id
            write_embeddings(store, name, block, row.repeat(n, 1))
        for hits in found(store, model, name, top_k=30):
            assert hits.sequence_ids.tolist() == list(range(30))
            assert len(set(hits.scores.tolist())) == 1


def test_more_neighbours_than_sequences_are_all_sequences(store, model):
    ids = all_sequence_ids(corpus_parts(store)).tolist()
    for hits in found(store, model, embedded(store, model), top_k=10 * len(ids)):
        assert sorted(hits.sequence_ids.tolist()) == ids


def test_the_cut_into_parts_blocks_and_workers_does_not_show(tmp_path, gpt2, corpus, monkeypatch):
    whole = ingested(tmp_path / "whole", gpt2, corpus)
    expected = found(whole, gpt2, embedded(whole, gpt2), top_k=9)
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[30 * k : 30 * k + 30]) for k in range(2)]
    split = ingested(tmp_path / "split", gpt2, *files)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        workers = Workers(lambda: client, lambda: client)
        name = embed_corpus.fn(split, gpt2, -1, COMPUTE, workers)
        results = [found(split, gpt2, name, top_k=9, workers=workers)]
    results.append(found(split, gpt2, name, top_k=9))
    monkeypatch.setattr(blocks, "BLOCK", 7)
    results.append(found(split, gpt2, embedded(split, gpt2), top_k=9))
    for result in results:
        for mine, theirs in zip(result, expected, strict=True):
            assert mine.sequence_ids.tolist() == theirs.sequence_ids.tolist()
            np.testing.assert_allclose(mine.scores, theirs.scores, atol=ROUNDING, rtol=0)


def every(step, store, part):
    """Of a part's sequences each `step`-th id of the store."""
    held = next(p for p in corpus_parts(store) if p.name == part)
    return np.array([i for i in range(held.first_sequence_id, held.end_sequence_id) if i % step == 0], np.int64)


def test_only_allowed_sequences_are_found(store, model, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 10)
    name, expected = embedded(store, model), explicit_scores(store, model)
    for q, hits in enumerate(found(store, model, name, top_k=4, allowed=partial(every, 5))):
        among = np.arange(0, expected.shape[1], 5)
        np.testing.assert_allclose(hits.scores, np.sort(expected[q, among])[::-1][:4], atol=ROUNDING, rtol=0)
        assert set(hits.sequence_ids.tolist()) <= set(among.tolist())
    nothing = found(store, model, name, allowed=lambda store, part: np.empty(0, np.int64))
    assert [len(hits.sequence_ids) for hits in nothing] == [0, 0]


def test_the_embeddings_of_a_changed_file_are_not_used(tmp_path, gpt2):
    path = worlds.write_jsonl(tmp_path / "c.jsonl", worlds.documents())
    store = ingested(tmp_path / "s", gpt2, path)
    name = embedded(store, gpt2)
    worlds.write_jsonl(path, worlds.documents()[::-1][:20])
    ingested(tmp_path / "s", gpt2, path)
    with pytest.raises(StoreError, match="Run the same command again"):
        found(store, gpt2, name)
    assert embedded(store, gpt2) == name
    hits = found(store, gpt2, name)[0]
    assert sorted(hits.sequence_ids.tolist()) == all_sequence_ids(corpus_parts(store)).tolist()
    expected = explicit_scores(store, gpt2)[0]
    np.testing.assert_allclose(hits.scores, np.sort(expected)[::-1], atol=ROUNDING, rtol=0)


def test_the_hooks_that_transformers_leaves_do_not_show(gpt2):
    network, sequence = load_model(gpt2), TokenSequence(0, [1, 2, 3])
    modules = select_modules(network, "mlp")

    def gradients():
        [(_, calls)] = sweep(network, modules, [collate([sequence])], true_token_gradient)
        return [tensor for m in modules for call in calls[m.name] for tensor in (call.inputs, call.deltas)]

    before = gradients()
    embed(network, [sequence], 1, COMPUTE)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients(), before, strict=True))


def test_rows_of_another_text_are_never_taken_for_those_of_this(store, model):
    """As after parts/ was emptied by hand: the same name and ids, and something else in them."""
    part = corpus_parts(store)[0]
    name = embedded(store, model)
    assert missing_blocks(store, name, [part]) == []
    for changed in (replace(part, content_digest="x"), replace(part, sequence_length=7)):
        assert missing_blocks(store, name, [changed]) == part_blocks(changed)


def test_states_that_overflow_are_refused_by_sequence(gpt2):
    network = copy.deepcopy(load_model(gpt2))
    network.transformer.wte.weight[5] = float("inf")
    with pytest.raises(InfluenceError, match="layer 1: .*sequence 8 .1 of 2"):
        embed(network, [TokenSequence(7, [1, 2]), TokenSequence(8, [5, 2])], 1, COMPUTE)
