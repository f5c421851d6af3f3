r"""The gallery of the README: every study on the demo's store, and on one of a model and texts that nobody here made.

    make gallery MODEL=stories260K CORPUS=tinystories_1000.parquet SENTENCES=pud_9lang.parquet \
        PUBLISHED=grosse_queries.json

Pages and stores go to --work, figures beside this file, and the README between two marks is written anew.
Models, traces and factors that are there are kept.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from exhibits import EXHIBITS, Exhibit, Subject, demo_subject, stories_subject

from storage.pages import visible
from tasks.study_page import Page, write_figures

ROOT = Path(__file__).parents[2]
FIGURES = Path(__file__).with_name("gallery")
README = ROOT / "README.md"
BEGIN, END = "<!-- gallery: what follows is written by make gallery -->\n", "<!-- end of the gallery -->\n"


def main() -> None:
    """Make both stores, ask every study of each, and write figures and text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="what make demo left")
    parser.add_argument("--model", type=Path, required=True, help="directory of a model of stories")
    parser.add_argument("--corpus", type=Path, required=True, help="stories that it was trained on")
    parser.add_argument("--sentences", type=Path, required=True, help="Parquet of sentences, a column per language")
    parser.add_argument("--published", type=Path, required=True, help="JSON of published queries with their groups")
    parser.add_argument("--work", type=Path, required=True, help="directory for stores and pages")
    asked = parser.parse_args()
    subjects = (demo_subject(asked), stories_subject(asked))
    shown = []
    for exhibit in EXHIBITS:
        pages = [exhibit.ask(subject, asked.work) for subject in subjects]
        shown.append(as_markdown(exhibit, subjects, pages))
        print(f"{exhibit.command}: {' | '.join(page.lead for page in pages)}", flush=True)
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(before + BEGIN + "\n" + "\n".join(shown) + "\n" + END + rest.split(END)[1], encoding="utf-8")
    print(f"{len(shown)} studies of {len(subjects)} models in {README}; pages in {asked.work}")


def as_markdown(exhibit: Exhibit, subjects: tuple[Subject, ...], pages: list[Page]) -> str:
    """One study of every subject: its question, figures side by side, what was found, and how to read it."""
    figures = [_figure(exhibit, subject, page) for subject, page in zip(subjects, pages, strict=True)]
    columns = [subject.caption for subject in subjects]
    lines = [f"**{pages[0].title}** `headwater study {exhibit.command} --store S`", ""]
    lines += [_row(columns), _row(["---"] * len(columns)), _row(figures), _row([_said(page) for page in pages])]
    caption = next(block.caption for block in pages[0].blocks if block.title == exhibit.section)
    return "\n".join([*lines, "", caption, ""])


def _figure(exhibit: Exhibit, subject: Subject, page: Page) -> str:
    """The figure of the exhibit's section as an SVG beside this file, and the Markdown that shows it."""
    chosen = tuple(block for block in page.blocks if block.title == exhibit.section)
    if not chosen or chosen[0].draw is None:
        return "no figure"
    [written] = write_figures(replace(page, blocks=chosen), FIGURES / subject.name)
    path = written.replace(written.with_name(f"{exhibit.name}.svg"))
    return f"![{exhibit.section}, {subject.caption}]({path.relative_to(ROOT)})"


def _said(page: Page) -> str:
    return visible(page.lead).replace("|", "\\|")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
