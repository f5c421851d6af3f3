"""What the gallery shows: two stores with two models each, and every study asked of them as its command would.

`gallery.py` draws it. A subject is a store, a model, the run that is looked at, and what suits it to be asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import source_ranks

from flows.cross_lingual import CrossLingualParameters, cross_lingual
from flows.demo import demo_parameters
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.studies import StudyParameters, study
from flows.tokens import TokenStudyParameters, tokens
from flows.trace import trace
from flows.training import TrainParameters, train
from flows.word_order import WordOrderParameters, word_order
from storage.checkpoints import context_length, load_tokenizer
from storage.prompts import Prompt, read_prompts
from tasks.candidates import CandidateParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.influence.errors import InfluenceError
from tasks.influence.queries import encode_query
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.methods import MethodParameters
from tasks.study_page import Page

SMALLER = ModelShape(layers=2, width=64)  # of the second models, which are trained from scratch on the same sequences
CONTINUED = 12  # stories that queries continue in their own words
OPENINGS = (  # what stories of this kind say, in nobody's words
    ("Once upon a time, there was a little girl named", " Lily"),
    ("One day, a little boy named", " Tim"),
    ("She was very happy and said,", ' "Thank you'),
    ("They all played together and had", " fun"),
    ("The big dog started to", " bark"),
    ("Her mom gave her a big", " hug"),
)


@dataclass(frozen=True)
class Subject:
    """A store with its model, the run that studies look at, and where the translations are."""

    name: str
    caption: str
    store: str
    model: str
    run: str
    sentences: str

    def asked(self, question: str, work: Path) -> Page:
        """What a study of one run says."""
        return study(StudyParameters.model_validate({
            "store": self.store, "question": question, "run": self.run, "output": self.page(question, work),
        }))  # fmt: skip

    def wordings(self, stimuli: str, name: str, work: Path) -> Page:
        """What the texts of one file, or of ours, teach."""
        return word_order(
            WordOrderParameters(
                store=self.store, models=(ModelParameters(name=self.model),), stimuli=stimuli, fit=FIT,
                output=self.page(name, work),
            )
        )  # fmt: skip

    def by_token(self, work: Path) -> Page:
        """Which tokens carry influence, by three definitions."""
        return tokens(TokenStudyParameters(store=self.store, run=self.run, output=self.page("tokens", work)))

    def translated(self, languages: str, work: Path) -> Page:
        """What the sequences behind a sentence do for its translations."""
        return cross_lingual(
            CrossLingualParameters(
                store=self.store, models=(ModelParameters(name=self.model),), fit=FIT,
                sentences=f"{self.sentences}:{languages}", output=self.page("cross-lingual", work),
            )
        )  # fmt: skip

    def page(self, name: str, work: Path) -> str:
        """Where the page of a study goes."""
        return str(work / self.name / f"{name}.html")


@dataclass(frozen=True)
class Exhibit:
    """A study: what it is called here, its command, the section whose figure is shown, and how it is asked."""

    name: str
    command: str
    section: str
    ask: Callable[[Subject, Path], Page]


FIT = FitParameters(sequences=2000)
EXHIBITS = (
    Exhibit("layers", "layers", "All queries", lambda s, work: s.asked("layers", work)),
    Exhibit("themes", "themes", "Profiles over the layers", lambda s, work: s.asked("themes", work)),
    Exhibit("restrict", "restrict", "Words in common", lambda s, work: s.asked("restrict", work)),
    Exhibit("sparsity", "sparsity", "Coverage", lambda s, work: s.asked("sparsity", work)),
    Exhibit("memorization", "memorization", "Quotations", lambda s, work: s.asked("memorization", work)),
    Exhibit("scale", "scale", "Words in common by size", lambda s, work: s.asked("scale", work)),
    Exhibit("tokens", "tokens", "How far they agree", lambda s, work: s.by_token(work)),
    Exhibit(
        "word-order",
        "word-order --model M --stimuli unknown",
        "Kinds of wording",
        lambda s, work: s.wordings("unknown", "word-order", work),
    ),
    Exhibit(
        "translation-order",
        "word-order --model M --stimuli sentences.parquet:en:de",
        "Kinds of wording",
        lambda s, work: s.wordings(f"{s.sentences}:en:de", "translation-order", work),
    ),
    Exhibit(
        "cross-lingual",
        "cross-lingual --model M --sentences sentences.parquet:en:de:fr:zh",
        "What is left in other languages",
        lambda s, work: s.translated("en:de:fr:zh", work),
    ),
)


def demo_subject(asked: argparse.Namespace) -> Subject:
    """The demo as it stands, and a smaller model of its tokenizer that is asked the same."""
    parameters = demo_parameters(asked.demo, "none")
    files = tuple(str(path) for path in sorted((asked.demo / "corpus").glob("*.parquet")))
    smaller = asked.demo / "smaller"
    train(
        TrainParameters(
            store=parameters.store, directory=str(smaller), shape=SMALLER, corpus=CorpusParameters(inputs=files),
            training=TrainingParameters(epochs=5), cluster="none",
        )
    )  # fmt: skip
    trace(parameters.model_copy(update={"model": ModelParameters(name=str(smaller))}))
    run = trace(parameters)
    return Subject("demo", "the demo’s GPT-2", parameters.store, parameters.model.name, run, str(asked.sentences))


def stories_subject(asked: argparse.Namespace) -> Subject:
    """A model of stories, asked to continue some, for their usual words, and what was published of larger models."""
    store = str(asked.work / "stories" / "store")
    smaller = asked.work / "stories" / "smaller"
    corpus = CorpusParameters(inputs=(str(asked.corpus),))
    asked_of = (*_continued(asked.corpus), *_openings(), *_published(asked.published, asked.model))
    parameters = TraceParameters(
        store=store,
        model=ModelParameters(name=str(asked.model)),
        queries=asked_of,
        corpus=corpus,
        candidates=CandidateParameters(filters=("bm25",), top_k=1_000_000),
        fit=FIT,
        method=MethodParameters(beside=("identity", "bm25"), rescore=20),
        cluster="none",
    )
    run = trace(parameters)
    shape = SMALLER.model_copy(update={"context": context_length(asked.model)})
    train(
        TrainParameters(
            store=store, directory=str(smaller), shape=shape, tokenizer=parameters.model, corpus=corpus,
            training=TrainingParameters(epochs=3), cluster="none",
        )
    )  # fmt: skip
    trace(parameters.model_copy(update={"model": ModelParameters(name=str(smaller))}))
    return Subject("stories", asked.model.name, store, str(asked.model), run, str(asked.sentences))


def _continued(corpus: Path) -> list[QueryParameters]:
    found = source_ranks.queries(corpus, CONTINUED).values()
    return [query.model_copy(update={"metadata": {"group": "continued story"}}) for query in found]


def _openings() -> list[QueryParameters]:
    return [
        QueryParameters(
            prompt=prompt, completion=completion, query_id=f"opening-{k}", metadata={"group": "usual words"}
        )
        for k, (prompt, completion) in enumerate(OPENINGS, start=1)
    ]  # fmt: skip


def _published(queries: Path, model: Path) -> list[QueryParameters]:
    """Those that the model's context holds."""
    tokenizer, context = load_tokenizer(model), context_length(model)

    def fits(prompt: Prompt) -> bool:
        try:
            encode_query(tokenizer, prompt.prompt, prompt.completion, context, prompt.query_id)
        except InfluenceError as error:
            print(f"left out: {error}")
            return False
        return True

    return [QueryParameters.of(prompt) for prompt in read_prompts(queries) if fits(prompt)]
