"""Facts in six kinds of wording: does it matter in which order a text names subject and answer?

The planted ones, which the demo's model knows by heart, and others in the same words that no corpus of the demo holds.
"""

from __future__ import annotations

from storage.stimuli import Stimulus
from tasks.demo.facts import PlantedFact, completion, facts, prompt, utterances

TEXTS = 5  # of each kind
UNKNOWN = {
    "capital": (("Bellorain", "Ashwick"), ("Quillmark", "Tornholt"), ("Erevance", "Gildmoor"), ("Sothary", "Wexholme")),
    "founder": (
        ("Brackwater Choir", "Edric Mawle"),
        ("Linden Foundry", "Olwen Tarrish"),
        ("Pellucid Press", "Ivo Brandreth"),
        ("Hollin Infirmary", "Sabra Quent"),
    ),
    "birthplace": (
        ("Corin Vasker", "Ettlebury"),
        ("Maud Ellerby", "Rookhampton"),
        ("Jasper Thole", "Yarrowfield"),
        ("Nerys Holt", "Nunsmere"),
    ),
    "inventor": (
        ("glass plough", "Hester Vann"),
        ("wind ledger", "Radomir Lisk"),
        ("copper kite", "Philippa Drum"),
        ("cork bell", "Anselm Gourd"),
    ),
    "river": (("Mossgate", "Idlewater"), ("Upper Fenn", "Brathe"), ("Sandwold", "Ouzel"), ("Tarnbridge", "Leddon")),
    "profession": (
        ("Bram Oxley", "saddler"),
        ("Thea Windle", "perfumer"),
        ("Lucan Frayne", "locksmith"),
        ("Agnes Turrell", "beekeeper"),
    ),
}


def planted_stimuli() -> list[Stimulus]:
    """A stimulus for every planted fact, made of its own wordings and those of the fact beside it."""
    return _stimuli(facts())


def unknown_stimuli() -> list[Stimulus]:
    """The same of as many facts that were never planted."""
    return _stimuli(
        [
            PlantedFact(f"unknown {relation}-{number}", relation, subject, answer)
            for relation, pairs in UNKNOWN.items()
            for number, (subject, answer) in enumerate(pairs, start=1)
        ]
    )


def _stimuli(every: list[PlantedFact]) -> list[Stimulus]:
    return [_stimulus(fact, _beside(every, fact), _elsewhere(every, fact)) for fact in every]


def _stimulus(fact: PlantedFact, other: PlantedFact, elsewhere: PlantedFact) -> Stimulus:
    wordings = utterances(fact)[1:]
    kept = [text for text in wordings if text.index(fact.subject) < text.index(fact.answer)][:TEXTS]
    flipped = [text for text in wordings if text.index(fact.answer) < text.index(fact.subject)][:TEXTS]
    sets = {
        "order kept": kept,
        "completion removed": [text[: text.index(fact.answer)].strip() for text in kept],
        "one part changed": [
            *(text.replace(fact.answer, other.answer) for text in kept[:2]),
            *(text.replace(fact.subject, other.subject) for text in kept[:2]),
        ],
        "unrelated": utterances(elsewhere)[:2],
        "flipped": flipped,
        "flipped, prompt removed": [text[: text.index(fact.subject)].strip() for text in flipped],
    }
    return Stimulus(fact.fact_id, prompt(fact), completion(fact), {name: tuple(of) for name, of in sets.items()})


def _beside(every: list[PlantedFact], fact: PlantedFact) -> PlantedFact:
    """The next fact of the same relation."""
    alike = [other for other in every if other.relation == fact.relation]
    return alike[(alike.index(fact) + 1) % len(alike)]


def _elsewhere(every: list[PlantedFact], fact: PlantedFact) -> PlantedFact:
    """A fact of another relation."""
    return next(other for other in every if other.relation != fact.relation)
