"""What a run found, printed: the answer, not a log."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console import shell_word
from storage.catalog import run_user_sql
from storage.database import rows, session
from storage.store import open_store
from storage.text import printable
from tasks.methods import GRADIENT

LEGEND = """Training sequences {how} each completion, ranked by {by}.
influence  {influence}
relative   influence / √(the sequence's own self-influence): long and odd sequences do not crowd the top
BM25       the place that word overlap alone gives the sequence among the candidates
[token]    the position with the most influence; it predicts the token after it
log p      of the whole completion after its prompt, as this model sees it, in nats
r          correlation of compressed with exact influences, over the sequences that were scored again exactly
factors    the curvature G that was fitted, on how many sequences, and λ, which is added before it is inverted
"""
INFLUENCE = """in nats, for a weight of the whole corpus: divided by the number of sequences it is the change of log p
           that one more copy would make; positive means that more of the sequence makes the completion likelier"""
MEANINGS = {
    "tracin": "the cosine of the query's and the sequence's gradients, or what the run asked for, over checkpoints",
    "embedding": "the cosine of mean hidden states: likeness, not influence",
    "tracin+embedding": "the mean of the cosines of gradients and of mean hidden states",
    "bm25plus": "the BM25+ score of the words that they share: likeness, not influence",
    "bm25": "the BM25 score of what they share: likeness, not influence",
    "lucene": "the BM25 score of what they share, as Lucene has it: likeness, not influence",
    "tfidf": "the TF-IDF score of what they share: likeness, not influence",
    "random_target": "1 and a random fraction where the sequence says the completion, else the fraction alone",
    "random": "a random number: the baseline of all baselines",
}
EXCERPT = 14  # tokens shown of a sequence, around the one with the most influence
WIDTH = 96  # characters of a text excerpt


def print_answers(store: str, run_id: str, console: Console, top: int = 10, by: str = "influence") -> None:
    """Every query of a run with its top sequences and where they act, ranked by influence or relative."""
    with session(open_store(store)) as connection:
        facts = rows(connection, "answer/run", run=run_id)[0]
        how = "that raised the probability of" if facts["method"] in (*GRADIENT, "tracin") else "found for"
        meaning = MEANINGS.get(facts["method"], INFLUENCE)
        console.print(Text(LEGEND.format(how=how, by=by, influence=meaning), style="dim"))
        for query in rows(connection, "answer/queries", run=run_id):
            asked = {"query": query["query_id"], "run": run_id, "k": top, "by": by}
            found = rows(connection, "answer/top", **asked)
            tokens: dict[int, list[dict]] = {}
            for row in rows(connection, "answer/tokens", **asked):
                tokens.setdefault(row["sequence_id"], []).append(row)
            _print_query(query, found, tokens, facts, console)
            for audit in rows(connection, "answer/filter_audit", query=query["query_id"], run=run_id):
                console.print(Text(_missed(audit, facts["n_sequences"]), style="dim"), soft_wrap=True)
                console.print()


def print_next(store: str, run_id: str, console: Console) -> None:
    """What to type next: the report, and the tokens of the last query's best sequence."""
    with session(open_store(store)) as connection:
        query_id = rows(connection, "answer/queries", run=run_id)[-1]["query_id"]
        found = rows(connection, "answer/top", query=query_id, run=run_id, k=1, by="influence")
    lines = [f"{command()} report --store {shell_word(store)} --run {run_id} -o report.html"]
    if found and found[0]["exact"]:  # others have no tokens
        quoted = printable(query_id).replace("'", "''")
        heatmap = f"select * from token_heatmap('{quoted}', {found[0]['sequence_id']})"
        lines.append(f"{command()} sql --store {shell_word(store)} {shell_word(heatmap)}")
    for lead, line in zip(("next", "    "), lines, strict=False):
        console.print(f"{lead}  {line}", highlight=False, markup=False, soft_wrap=True)


def command() -> str:
    """How this program is called here: by name where the shell finds it, else by the path it was started with."""
    return "headwater" if shutil.which("headwater") else shell_word(sys.argv[0])


def _print_query(
    query: dict[str, Any], found: list[dict], tokens: dict[int, list[dict]], facts: dict[str, Any], console: Console
) -> None:
    line = Text.assemble(
        ("query ", "dim"), (printable(query["query_id"]), "bold"), (" · ", "dim"),
        f'"{printable(query["prompt"][-WIDTH:])}" → "{printable(query["completion"][:WIDTH])}"',
        (f"   log p {query['log_probability']:.2f} nats · {facts['n_sequences']:,} sequences · "
         f"{query['n_candidates']:,} candidates", "dim"),
    )  # fmt: skip
    console.print(line, soft_wrap=True)
    if not found:
        console.print("  no candidate shares a token with this query: use --filter none or --unfiltered N\n")
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    for name in ("#", "influence", "relative", (query["filter"] or "filter").upper()):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    table.add_column("strongest layer", no_wrap=True, min_width=14)
    table.add_column("sequence", overflow="ellipsis", no_wrap=True)
    for row in found:
        relative = row["relative_influence"]
        table.add_row(
            str(row["rank"]),
            f"{row['influence']:.4g}",
            "·" if relative is None else f"{relative:.3g}",
            "·" if row["filter_rank"] is None else f"{row['filter_rank']:,}",
            Text(row["strongest_module"] or "·"),
            _excerpt(tokens.get(row["sequence_id"], []), row["text"] or ""),
        )
    console.print(table)
    console.print(Text(_footer(query, facts), style="dim"), soft_wrap=True)
    console.print()


def _excerpt(tokens: list[dict], text: str) -> Text:
    """The tokens around the strongest one, coloured by their influence: red raises, cyan lowers."""
    if not tokens:
        return Text(printable(text[:WIDTH]))
    strongest = max(range(len(tokens)), key=lambda t: abs(tokens[t]["influence"]))
    scale = abs(tokens[strongest]["influence"]) or 1.0
    start = max(0, min(strongest - EXCERPT // 2, len(tokens) - EXCERPT))
    shown = Text("… " if start else "")
    for token in tokens[start : start + EXCERPT]:
        share = token["influence"] / scale
        style = "" if abs(share) < 0.1 else ("bold " if abs(share) > 0.5 else "") + ("red" if share > 0 else "cyan")
        word = printable(token["token"])
        shown.append(f"[{word}]" if token is tokens[strongest] else word, style)
    if start + EXCERPT < len(tokens):
        shown.append(" …")
    return shown


def _footer(query: dict[str, Any], facts: dict[str, Any]) -> str:
    parameters = json.loads(facts["parameters"])
    if facts["method"] not in GRADIENT:
        return f"method {facts['method']}, {query['n_candidates']:,} candidates"
    damping = parameters["method"]["damping"]
    strength = damping["absolute"] or f"{damping['relative']:g} · mean eigenvalue"
    correlation = query["compression_correlation"]
    pieces = []
    if query["top_share"] is not None:
        pieces.append(f"top 1 % holds {query['top_share']:.0%} of the candidates' positive influence")
    if correlation is not None:
        pieces.append(f"rank-{query['rank']} compression r = {correlation:.4f}")
    pieces.append(
        f"factors {facts['factors_id']} ({min(parameters['fit']['sequences'], facts['n_sequences']):,} sequences, "
        f"damping {strength})"
        if facts["method"] != "identity"
        else "gradient dot product"
    )
    return " · ".join(pieces)


def _missed(audit: dict[str, Any], n_sequences: int) -> str:
    """What the filter misses, in one line: the share of the sample's top, and the random scan that would match it."""
    pieces = [f"no positive influence in a uniform sample of {audit['n_sample']:,}"]
    if audit["n_top"]:
        pieces = [
            f"of the {audit['n_top']:,} largest influences of a uniform sample of {audit['n_sample']:,} the filter had "
            f"{audit['n_top'] - audit['n_missed']:,} (missed {audit['missed_share']:.0%}, "
            f"95 % interval {audit['ci_low']:.0%} to {audit['ci_high']:.0%})"
        ]
    if audit["scan_budget"] is not None:
        beyond = ", more than the corpus has" if audit["scan_budget"] > n_sequences else ""
        pieces.append(
            f"to match its top 10 by scanning at random: about {_rounded(audit['scan_budget'])} sequences{beyond} "
            f"(95 % interval {_rounded(audit['budget_low'])} to {_rounded(audit['budget_high'])}; {audit['reason']})"
        )
    else:
        pieces.append(audit["reason"])
    if audit["tail_alpha"] is not None:
        verdict = "rejected" if audit["tail_p"] <= 0.1 else "not rejected"
        pieces.append(
            f"power-law tail with survival exponent α = {audit['tail_alpha']:.2f} over {audit['tail_n']:,}, "
            f"{verdict} (p = {audit['tail_p']:.2f})"
        )
    return " · ".join(pieces)


def _rounded(count: float) -> str:
    """An extrapolated count, of which two digits mean something."""
    return f"{float(f'{count:.2g}'):,.0f}"


def print_outliers(path: str, factors_id: str, measured: int, console: Console, top: int) -> None:
    """The sequences with the largest self-influence under some factors, and the SQL for more of them."""
    asked = f"largest_self_influences(k := {top}, factors := '{factors_id}')"
    columns, rows = run_user_sql(open_store(path), f"select * from {asked}")
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("#", "right"), ("self-influence", "right"), ("per token", "right"), ("tokens", "right"),
                          ("document", "left"), ("sequence", "left")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=name != "sequence")
    for row in found:
        table.add_row(
            str(row["rank"]),
            f"{row['self_influence']:,.4g}",
            f"{row['self_influence_per_token']:,.4g}",
            f"{row['n_tokens']:,}",
            Text(printable(str(row["document_id"]))),
            Text(printable(row["text"] or "")[:WIDTH]),
        )
    console.print(table)
    console.print(f"{measured:,} sequences measured now, the others before · factors {factors_id}")
    line = f"next  {command()} sql --store {shell_word(path)} {shell_word(f'select * from {asked}')}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
