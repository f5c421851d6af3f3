from __future__ import annotations

import numpy as np

from tasks.sampling import uniform_sample


def test_a_sample_depends_on_seed_and_ids_not_on_their_order():
    ids = np.arange(1000)
    sample = uniform_sample(ids, 50, 3)
    assert sample.tolist() == uniform_sample(np.random.default_rng(0).permutation(ids), 50, 3).tolist()
    assert sample.tolist() != uniform_sample(ids, 50, 4).tolist()
    assert len(set(sample.tolist())) == 50


def test_every_id_is_drawn_about_equally_often():
    counts = np.zeros(100)
    for seed in range(2000):
        counts[uniform_sample(np.arange(100), 10, seed)] += 1
    # Binomial(2000, .1): mean 200, standard deviation 13.4; 100 counts stay within five of them.
    assert counts.sum() == 20_000
    assert np.abs(counts - 200).max() < 5 * 13.4


def test_a_sample_larger_than_the_corpus_is_the_corpus():
    assert uniform_sample(np.array([5, 3, 9]), 10, 0).tolist() == [3, 5, 9]
