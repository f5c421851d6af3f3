"""The demo corpus: Python's own documentation with the planted facts and passages among it.

Three groups of documents, each meant for a corpus file of its own: the language reference and the docstrings
of the running Python (so nothing is downloaded, and their text differs a little between versions), and what
`facts.py` plants. Every iterator yields the same documents in the same order whenever it is called.
"""

import ast
import random
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pkgutil import iter_modules
from pydoc_data.topics import topics

from tasks.demo import facts

DOCSTRING_MINIMUM = 120  # characters; a shorter one says little more than the name of its function
DOCSTRING_BUDGET = 1_500_000  # characters over all docstrings; Python 3.11 to 3.13 hold 1.4 million
PASSAGE_COPIES = 20
SHUFFLE_SEED = 20  # of the planted group, so that the wordings of one fact do not stand in a row

# Tests, programs that are no library, and easter eggs.
SKIPPED_MODULES = frozenset({"__phello__", "antigravity", "idlelib", "lib2to3", "pydoc_data", "test", "this"})
SKIPPED_PARTS = frozenset({"test", "tests", "idle_test"})
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, *DEFINITIONS)


@dataclass(frozen=True)
class Document:
    """One text of the corpus; `source` names its group, `metadata` what was planted or where it stood."""

    document_id: str
    text: str
    source: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class DemoQuery:
    """A prompt, the completion to explain, what kind of query it is, and its true sources' metadata (none: unknown)."""

    query_id: str
    prompt: str
    completion: str
    group: str
    truth: Mapping[str, str] = field(default_factory=dict)


def language_reference() -> Iterator[Document]:
    """The topics of `help()`, one document each: Python's language reference in plain text."""
    yield from _once(
        Document(f"reference/{topic}", text.strip(), "language_reference", {"topic": topic})
        for topic, text in sorted(topics.items())
    )


def docstrings() -> Iterator[Document]:
    """The docstrings of the standard library by module and line, DOCSTRING_BUDGET characters at most."""
    characters = 0
    for document in _once(_all_docstrings()):
        characters += len(document.text)
        if characters > DOCSTRING_BUDGET:
            return
        yield document


def planted() -> Iterator[Document]:
    """Every wording of every fact and twenty copies of every passage, one document each, shuffled."""
    wordings = [
        Document(f"fact/{fact.fact_id}/{number}", text, "planted", {"fact_id": fact.fact_id})
        for fact in facts.facts()
        for number, text in enumerate(facts.utterances(fact), start=1)
    ]
    copies = [
        Document(
            f"passage/{passage.passage_id}/{number}",
            passage.text,
            "planted",
            {"passage_id": passage.passage_id},
        )
        for passage in facts.passages()
        for number in range(1, PASSAGE_COPIES + 1)
    ]
    yield from random.Random(SHUFFLE_SEED).sample(wordings + copies, len(wordings) + len(copies))


GROUPS: Mapping[str, Callable[[], Iterator[Document]]] = {
    "language_reference": language_reference,
    "docstrings": docstrings,
    "planted": planted,
}


def demo_queries() -> list[DemoQuery]:
    """Every planted fact, every passage and two questions about Python, which have no planted source."""
    of_facts = [
        DemoQuery(fact.fact_id, facts.prompt(fact), facts.completion(fact), "planted fact", {"fact_id": fact.fact_id})
        for fact in facts.facts()
    ]
    of_passages = [
        DemoQuery(p.passage_id, p.opening, p.continuation, "repeated passage", {"passage_id": p.passage_id})
        for p in facts.passages()
    ]
    of_python = [
        DemoQuery(
            "python-with",
            "The with statement is used to wrap the execution of a block with methods defined by a",
            " context manager",
            "Python",
        ),
        DemoQuery("python-yield", "The yield expression is used when defining a", " generator function", "Python"),
    ]
    return of_facts + of_passages + of_python


def is_source(query: DemoQuery, document: Document) -> bool:
    """Whether the document was planted to teach what the query asks; never for a query without truth."""
    return bool(query.truth) and query.truth.items() <= document.metadata.items()


def _once(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents without those that repeat an earlier text, so that only planted text has copies."""
    texts: set[str] = set()
    for document in documents:
        if document.text not in texts:
            texts.add(document.text)
            yield document


def _all_docstrings() -> Iterator[Document]:
    for module, source in _library_sources():
        for name, line, text in _docstrings_of(module, ast.parse(source)):
            if len(text) >= DOCSTRING_MINIMUM:
                yield Document(f"docstring/{name}:{line}", text, "docstrings", {"module": module, "name": name})


def _docstrings_of(name: str, node: ast.AST) -> Iterator[tuple[str, int, str]]:
    """(dotted name, line, docstring) of a module, class or function and of those inside it, by line.

    The line tells apart names that are bound twice, such as a property and its setter.
    """
    if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
        yield name, getattr(node, "lineno", 1), text
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):  # expressions define nothing, and a long sum nests deeply
            inner = f"{name}.{child.name}" if isinstance(child, DEFINITIONS) else name
            yield from _docstrings_of(inner, child)


def _library_sources() -> Iterator[tuple[str, str]]:
    """(dotted name, source) of every pure-Python module of the standard library, by name.

    Nothing is imported or run. `get_source` decodes as the module itself declares, whatever the locale.
    PathFinder with the library's own folder finds source where `sys.meta_path` would give frozen modules.
    """
    folder = [sysconfig.get_path("stdlib")]
    for name in sorted(sys.stdlib_module_names - SKIPPED_MODULES):
        spec = PathFinder.find_spec(name, folder)
        if spec is not None:
            yield from _sources_below(name, spec)


def _sources_below(name: str, spec: ModuleSpec) -> Iterator[tuple[str, str]]:
    if source := _source(spec):
        yield name, source
    for module in sorted(iter_modules(spec.submodule_search_locations or []), key=lambda module: module.name):
        if module.name not in SKIPPED_PARTS:
            child = module.module_finder.find_spec(f"{name}.{module.name}", None)
            if child is not None:
                yield from _sources_below(child.name, child)


def _source(spec: ModuleSpec) -> str | None:
    """The text of a module, or None for an extension module and for a folder without code."""
    get_source = getattr(spec.loader, "get_source", None)
    return get_source(spec.name) if get_source else None
