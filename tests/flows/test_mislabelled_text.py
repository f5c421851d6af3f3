"""Swapped answers, a model taught them, and the search for them, from the command to the tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import worlds

from flows.mislabelled_text import MislabelledTextParameters
from storage.catalog import run_user_sql
from storage.store import open_store
from tasks.inspection import METHODS

pytestmark = [pytest.mark.usefixtures("prefect_db"), pytest.mark.slow]  # networks are trained by the dozen


def labelled() -> list[dict]:
    """Twelve times each of five animals goes to its own place: what is swapped contradicts the others."""
    pairs = list(zip(worlds.ANIMALS[:5], worlds.PLACES[:5], strict=True))
    return [
        {"document_id": f"d{k}", "text": f"The {animal} went to the {place}.", "answer": place}
        for k, (animal, place) in enumerate(pairs * 12)
    ]


def test_documents_with_swapped_answers_come_first_and_the_tables_say_so(tmp_path, headwater):
    corpus = worlds.write_jsonl(tmp_path / "corpus.jsonl", labelled())
    code, out, _ = headwater(
        "evaluate", "mislabelled-text", corpus, "--directory", tmp_path / "work", "--model",
        worlds.save_gpt2(tmp_path / "model", width=32), "--seeds", 1, "--first-seed", 3,
        "--epochs", 15, "--learning-rate", 1e-2, "--precision", "float32", "-o", tmp_path / "page.html",
    )  # fmt: skip
    assert code == 0
    assert "In 1 corpora of 60 documents, 6 documents each were given the answer of another one" in out
    store = open_store(tmp_path / "work" / "seed-3" / "store")
    found = dict(run_user_sql(store, "select method, value from evaluations where metric = 'found@20%'")[1])
    assert set(found) == set(METHODS)
    rows = run_user_sql(
        store,
        "select (metadata ->> '$.swapped')::boolean, s.self_influence, s.gradient_norm, a.self_influence, "
        "a.gradient_norm, a.loss, a.contradiction from self_influences s "
        "join answer_influences a using (factors_id, sequence_id) "
        "join sequences using (sequence_id) join documents using (document_id) order by sequence_id",
    )[1]
    wrong, *columns = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    whole, whole_norm, answer, answer_norm, loss, contradiction = columns
    confidence, tracin = on_the_way(store, len(wrong))
    assert len(wrong) == 60
    assert (answer < whole).mean() > 0.9  # a part of the text has a part of its gradient
    ranked = {"ekfac": whole, "identity": whole_norm**2, "ekfac of the answer": answer,
              "identity of the answer": answer_norm**2, "loss of the answer": loss,
              "contradiction": contradiction, "confidence": -confidence, "tracin of the answer": tracin}  # fmt: skip
    for method, scores in ranked.items():
        first = np.argsort(-scores)[:12]
        assert found[method] == pytest.approx(wrong[first].sum() / 6)
    assert found["loss"] == found["ekfac"] == found["ekfac of the answer"] == 1.0  # nothing else is surprising
    assert found["confidence"] >= 0.6  # no right answer is as improbable as a wrong one, once there is a right one
    assert found["contradiction"] >= 0.4  # of six documents, each of which the others contradict; by chance .2
    assert found["random"] < 0.7
    assert "answer alone: self-influence, EK-FAC" in (tmp_path / "page.html").read_text()


def on_the_way(store, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each sequence the mean of p over the checkpoints of the training, and its gradients’ lengths squared, summed.

    The lengths count by the step sizes that the training wrote beside its checkpoints.
    """
    steps = {}
    for note in (store.root.parent / "model").glob("checkpoint-*/checkpoint.json"):
        written = json.loads(note.read_text())
        steps[written["step"]] = written["learning_rate"]
    steps.pop(0)
    rows = run_user_sql(store, "select sequence_id, checkpoint, loss, gradient_norm from answer_trajectories")[1]
    confidence, tracin = np.zeros(n), np.zeros(n)
    for sequence, step, loss, norm in (row for row in rows if row[1] > 0):
        confidence[sequence] += np.exp(-loss) / len(steps)
        tracin[sequence] += steps[step] * norm**2
    assert len(rows) == n * (len(steps) + 1)
    return confidence, tracin


def test_a_corpus_cut_across_documents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="packing: expected document, found concatenate"):
        MislabelledTextParameters(inputs=("c.jsonl",), directory=str(tmp_path), cut={"packing": "concatenate"})
