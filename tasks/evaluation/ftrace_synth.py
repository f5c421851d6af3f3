"""FTRACE-SYNTH: facts about entities that nobody has heard of, so that a model can know them from these texts alone.

After Akyürek et al. 2022 (arXiv 2205.11482), with their ratios at any scale. For n entities:
10 n facts (subject, relation, object), drawn uniformly; one in which (relation, subject) or (relation, object) occurs
already is drawn again, so that asked from either side a fact has one answer. A fact is put into words by 2 paraphrases
of its relation and 4 surfaces of each argument (entity-14, 14-entity, entity-XIV, XIV-entity): 32 utterances.
A tenth of the facts, the test facts, hold out one utterance each, at random (another share may be asked for: small sets
have few queries); all other utterances are shuffled and joined in pairs by a comma.

Two forms for a causal language model:
causal    A document is a pair as it stands. A query is the held-out utterance up to its last argument, the answer that
          argument. One paraphrase of each relation ends in the object and the other in the subject, so either side is
          asked for, whichever the held-out utterance ends in. A test fact has 31 proponents.
masked    A document is a pair with one argument of each utterance masked, followed by what the masks stand for; each
          pair gives 2 × 2. Queries mask either side of the held-out utterance, two to a test fact. 124 proponents.

Where this differs from the published set: the wording of the relations, which there are random words; second
paraphrases that end in the subject; no fact relates an entity to itself; no pair joins two utterances of one fact (at
full scale that would cost one fact in 3,000 a few proponents).
The answer's surface was never seen behind the very same prompt, while the other three were: whoever knows a fact and
not more says that surface once in four times, and whoever learned the texts by heart never does. So a query names all
four as its aliases: a model that answers with any of them knows the fact.

Letters: f facts, u utterances, p pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int

Form = Literal["causal", "masked"]

FACTS_PER_ENTITY = 10
TEST_SHARE = 0.1
PARAPHRASES, SURFACES = 2, 4
UTTERANCES = PARAPHRASES * SURFACES * SURFACES
MASK, STANDS_FOR = "___", " ="
BATCH = 20_000  # pairs that are put into words together
ALONE = -1  # in the place of a second utterance

# By relation: a paraphrase that ends in the object {1}, and one that ends in the subject {0}.
RELATIONS: dict[str, tuple[str, str]] = {
    "birthplace": ("{0} was born in {1}", "{1} is the birthplace of {0}"),
    "place of death": ("{0} died in {1}", "{1} is the place of death of {0}"),
    "capital": ("the capital of {0} is {1}", "{1} is the capital of {0}"),
    "citizenship": ("{0} is a citizen of {1}", "{1} counts among its citizens {0}"),
    "employer": ("{0} works for {1}", "{1} employs {0}"),
    "founder": ("{0} was founded by {1}", "{1} is the founder of {0}"),
    "team": ("{0} plays for {1}", "{1} has in its team {0}"),
    "language": ("{0} speaks {1}", "{1} is the language of {0}"),
    "spouse": ("{0} is married to {1}", "{1} is the spouse of {0}"),
    "parent": ("{0} is a child of {1}", "{1} is a parent of {0}"),
    "teacher": ("{0} studied under {1}", "{1} was the teacher of {0}"),
    "author": ("{0} was written by {1}", "{1} is the author of {0}"),
    "composer": ("{0} was composed by {1}", "{1} composed {0}"),
    "director": ("{0} was directed by {1}", "{1} directed {0}"),
    "painter": ("{0} was painted by {1}", "{1} painted {0}"),
    "inventor": ("{0} was invented by {1}", "{1} is the inventor of {0}"),
    "discoverer": ("{0} was discovered by {1}", "{1} is the discoverer of {0}"),
    "location": ("{0} is located in {1}", "{1} is the location of {0}"),
    "neighbour": ("{0} borders on {1}", "{1} lies next to {0}"),
    "mouth": ("{0} flows into {1}", "{1} receives the water of {0}"),
    "owner": ("{0} is owned by {1}", "{1} is the owner of {0}"),
    "parent company": ("{0} is a subsidiary of {1}", "{1} is the parent company of {0}"),
    "maker": ("{0} is produced by {1}", "{1} is the maker of {0}"),
    "developer": ("{0} was developed by {1}", "{1} is the developer of {0}"),
    "namesake": ("{0} is named after {1}", "{1} gave its name to {0}"),
    "religion": ("{0} believes in {1}", "{1} is the faith of {0}"),
    "office": ("{0} holds the office of {1}", "{1} is the office of {0}"),
    "membership": ("{0} is a member of {1}", "{1} has as a member {0}"),
    "instrument": ("{0} plays the {1}", "{1} is the instrument of {0}"),
    "genre": ("{0} belongs to the genre {1}", "{1} is the genre of {0}"),
    "record label": ("{0} is signed to {1}", "{1} is the record label of {0}"),
    "broadcaster": ("{0} was broadcast by {1}", "{1} broadcast {0}"),
    "twin town": ("{0} is twinned with {1}", "{1} is the twin town of {0}"),
    "currency": ("{0} is paid in {1}", "{1} is the currency of {0}"),
    "embassy": ("{0} has an ambassador in {1}", "{1} receives the ambassador of {0}"),
    "field": ("{0} specialises in {1}", "{1} is the field of {0}"),
    "part": ("{0} consists of {1}", "{1} is a part of {0}"),
}


@dataclass(frozen=True)
class SynthSet:
    """What the set says, in numbers.

    An utterance is ((fact · 2 + paraphrase) · 4 + surface of the subject) · 4 + surface of the object.
    """

    facts: Int[np.ndarray, "f 3"]  # subject, relation, object; entities count from 1
    held_out: Int[np.ndarray, "test"]  # one utterance of each test fact
    pairs: Int[np.ndarray, "p 2"]  # the other utterances; one may be ALONE


def make_set(entities: int, seed: int, test_share: float = TEST_SHARE) -> SynthSet:
    """Draw facts, test facts and pairs; one seed gives one set under one version of NumPy."""
    if entities < 2:
        raise ValueError(f"expected at least two entities to relate, found {entities}.")
    generator = np.random.default_rng(seed)
    facts = _draw_facts(entities, generator)
    tested = np.sort(generator.permutation(len(facts))[: max(1, round(test_share * len(facts)))])
    held_out = tested * UTTERANCES + generator.integers(UTTERANCES, size=len(tested))
    kept = np.setdiff1d(np.arange(len(facts) * UTTERANCES), held_out, assume_unique=True)
    return SynthSet(facts, held_out, _draw_pairs(kept, generator))


def documents(synth: SynthSet, form: Form) -> Iterator[dict[str, list]]:
    """The training texts in batches of columns: doc_id, text, facts and, masked, the pair that a text is made of."""
    for start in range(0, len(synth.pairs), BATCH):
        columns: dict[str, list] = {"doc_id": [], "text": [], "facts": []}
        if form == "masked":
            columns["pair"] = []
        for number, pair in enumerate(synth.pairs[start : start + BATCH].tolist(), start=start):
            utterances = [_words(synth, u) for u in pair if u != ALONE]
            for version, text in enumerate(_texts(utterances, form)):
                columns["doc_id"].append(f"pair-{number}" if form == "causal" else f"pair-{number}-{version}")
                columns["text"].append(text)
                columns["facts"].append([fact_name(synth, u // UTTERANCES) for u in pair if u != ALONE])
                if form == "masked":
                    columns["pair"].append(f"pair-{number}")
        yield columns


def queries(synth: SynthSet, form: Form) -> dict[str, list]:
    """The questions as columns: query_id, prompt, answer, all names of it, fact, relation, which argument is asked."""
    names = ("query_id", "prompt", "answer", "aliases", "fact", "relation", "asks_for")
    columns: dict[str, list] = {name: [] for name in names}
    relations = list(RELATIONS)
    for utterance in synth.held_out.tolist():
        fact, words = utterance // UTTERANCES, _words(synth, utterance)
        sides = (0, 1) if form == "masked" else (words.last,)
        for side in sides:
            columns["query_id"].append(f"fact-{fact}-{'object' if side else 'subject'}")
            columns["prompt"].append(words.masked(side) + STANDS_FOR if form == "masked" else words.opening)
            columns["answer"].append(words.arguments[side])
            columns["aliases"].append(list(surfaces(synth.facts[fact, 2 * side].item())))
            columns["fact"].append(fact_name(synth, fact))
            columns["relation"].append(relations[synth.facts[fact, 1]])
            columns["asks_for"].append("object" if side else "subject")
    return columns


def fact_name(synth: SynthSet, fact: int) -> str:
    """What a document's facts and a query's fact say: one text per fact."""
    subject, relation, target = synth.facts[fact].tolist()
    return f"entity-{subject} | {list(RELATIONS)[relation]} | entity-{target}"


def surfaces(entity: int) -> tuple[str, str, str, str]:
    """The four names of an entity."""
    return f"entity-{entity}", f"{entity}-entity", f"entity-{roman(entity)}", f"{roman(entity)}-entity"


def roman(number: int) -> str:
    """A number from 1 in Roman numerals; from 4,000 on with further Ms."""
    ones = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"]
    text = "M" * (number // 1000)
    for place, (one, five, ten) in zip((100, 10, 1), ("CDM", "XLC", "IVX"), strict=True):
        digit = number // place % 10
        text += ones[digit - 1].translate(str.maketrans("IVX", one + five + ten)) if digit else ""
    return text


@dataclass(frozen=True)
class _Words:
    """One utterance: its template and the surfaces of subject and object."""

    template: str
    arguments: tuple[str, str]

    @property
    def text(self) -> str:
        return self.template.format(*self.arguments)

    @property
    def last(self) -> int:
        """The argument that the utterance ends in: 0 the subject, 1 the object."""
        return int(self.template.endswith("{1}"))

    @property
    def opening(self) -> str:
        """The utterance up to its last argument."""
        return self.template.removesuffix(f" {{{self.last}}}").format(*self.arguments)

    def masked(self, side: int) -> str:
        """The utterance with MASK for one argument."""
        return self.template.format(*(MASK if k == side else argument for k, argument in enumerate(self.arguments)))


def _words(synth: SynthSet, utterance: int) -> _Words:
    fact, rest = divmod(utterance, UTTERANCES)
    paraphrase, rest = divmod(rest, SURFACES * SURFACES)
    subject, relation, target = synth.facts[fact].tolist()
    chosen = surfaces(subject)[rest // SURFACES], surfaces(target)[rest % SURFACES]
    return _Words(_TEMPLATES[relation][paraphrase], chosen)


_TEMPLATES = tuple(RELATIONS.values())


def _texts(utterances: list[_Words], form: Form) -> Iterator[str]:
    """A pair in words: as it stands, or once for each choice of one argument in each utterance."""
    if form == "causal":
        yield ",".join(words.text for words in utterances)
        return
    for sides in np.ndindex(*[2] * len(utterances)):
        chosen = list(zip(utterances, sides, strict=True))
        masked = ",".join(words.masked(side) for words, side in chosen)
        yield masked + "".join(f"{STANDS_FOR} {words.arguments[side]}" for words, side in chosen)


def _draw_facts(entities: int, generator: np.random.Generator) -> Int[np.ndarray, "f 3"]:
    wanted = FACTS_PER_ENTITY * entities
    facts: list[tuple[int, int, int]] = []
    taken: set[tuple[int, int, str]] = set()
    while len(facts) < wanted:
        ends = generator.integers(1, entities + 1, size=(wanted, 2))
        relations = generator.integers(len(RELATIONS), size=wanted)
        for (subject, target), relation in zip(ends.tolist(), relations.tolist(), strict=True):
            sides = {(relation, subject, "subject"), (relation, target, "object")}
            if subject != target and not sides & taken and len(facts) < wanted:
                taken |= sides
                facts.append((subject, relation, target))
    return np.array(facts)


def _draw_pairs(utterances: Int[np.ndarray, "u"], generator: np.random.Generator) -> Int[np.ndarray, "p 2"]:
    shuffled = generator.permutation(utterances)
    pairs = np.concatenate([shuffled, np.full(len(shuffled) % 2, ALONE)]).reshape(-1, 2)
    while len(same := np.flatnonzero(pairs[:, 0] // UTTERANCES == pairs[:, 1] // UTTERANCES)):
        others = generator.permutation(len(pairs))[: len(same)]
        for one, other in zip(same, others, strict=True):
            pairs[[one, other], 1] = pairs[[other, one], 1]
    return pairs
