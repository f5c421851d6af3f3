"""Does a model know translations, or only the language that they are in? A control beside `headwater study word-order`.

    python tests/benchmarks/translation_knowledge.py MODEL PAIRS.parquet:en:de [MORE.parquet:en:de …]

For each file the log-probability of a translation after its own sentence, less that after another pair's, in nats per
token: 0 where the model does not know which sentence it translates. Means over pairs with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import storage  # noqa: F401  # sets the environment before torch

# isort: split
from storage.checkpoints import context_length, load_model, load_tokenizer
from storage.stimuli import Stimulus, read_translations
from tasks.evaluation.ranking import bootstrap_mean
from tasks.influence.queries import encode_query, log_probability


def main() -> None:
    """Print a line for each file, in both directions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a model")
    parser.add_argument("pairs", nargs="+", help="FILE.parquet:en:de, as word-order's --stimuli has it")
    asked = parser.parse_args()
    network, tokenizer, context = load_model(asked.model), load_tokenizer(asked.model), context_length(asked.model)

    def per_token(prompt: str, completion: str) -> float:
        query = encode_query(tokenizer, prompt, completion, context, completion)
        return log_probability(network, query) / (len(query.token_ids) - query.first_scored)

    for given in asked.pairs:
        path, first, second = given.rsplit(":", 2)
        for a, b in ((first, second), (second, first)):
            pairs: list[Stimulus] = read_translations(path, a, b)
            others = [*pairs[1:], pairs[0]]
            own = [per_token(pair.prompt, pair.completion) for pair in pairs]
            crossed = [per_token(o.prompt, pair.completion) for pair, o in zip(pairs, others, strict=True)]
            gain = bootstrap_mean([x - y for x, y in zip(own, crossed, strict=True)])
            print(f"{path} {a} → {b}: {len(pairs)} pairs, log p {sum(own) / len(own):.3f} nats per token, "
                  f"{gain.value:+.3f} [{gain.ci_low:+.3f}, {gain.ci_high:+.3f}] by its own sentence")  # fmt: skip


if __name__ == "__main__":
    main()
