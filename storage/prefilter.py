"""Candidate prefilter: a user's SQL expression over documents and sequences, checked, then run locked down.

`--where "source = 'x' and n_tokens > 50"` leaves the sequences for which the expression is true; null is not true.
DuckDB parses it; only what ALLOWED and `pure_functions` name may stand in the syntax tree, so that the expression
reads one row, changes nothing and says the same tomorrow.
The connection that runs it can open the two files of its part and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import duckdb
import numpy as np

from storage.database import configure, part_view, rows, statement
from storage.errors import InputError, StoreError
from storage.schemas import SCHEMAS
from storage.store import Store

RELATIONS = ("documents", "sequences")
COLUMNS = tuple(dict.fromkeys(name for relation in RELATIONS for name in SCHEMAS[relation].names))
LONGEST = 100_000  # characters; room for thousands of ids in a list, and parsed in a second
SHOWN = 80  # characters of an expression in an error

# Classes of syntax nodes, as DuckDB names them; whatever is not here is refused.
ALLOWED = {"BETWEEN", "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR",
           "TYPE"}  # fmt: skip
ALLOWED_OPERATORS = {"ARRAY_EXTRACT", "ARRAY_SLICE", "COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_COALESCE",
                     "OPERATOR_IS_NOT_NULL", "OPERATOR_IS_NULL", "OPERATOR_NOT", "OPERATOR_TRY",
                     "STRUCT_EXTRACT"}  # fmt: skip
REFUSED = {
    "LAMBDA": "-> or a lambda",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a column by position",
    "STAR": "a star",
    "SUBQUERY": "a subquery",
    "WINDOW": "a window",
}
# -> is how DuckDB writes a lambda, too: it binds looser than = and "and", and so never means what was meant.
REMEDIES = {"LAMBDA": "Reach into JSON with metadata->>'$.key' or json_extract(metadata, '$.key')."}

# Macros have no declared purity; these were read in duckdb_functions().macro_definition.
PURE_MACROS = {"array_to_string", "days_in_month", "fdiv", "fmod", "if", "list_append", "list_avg", "list_count",
               "list_first", "list_last", "list_max", "list_median", "list_min", "list_reverse", "list_sum", "nullif",
               "split_part"}  # fmt: skip
# Functions that DuckDB declares consistent, and that are left out all the same.
IMPURE = {
    **dict.fromkeys(("age", "current_localtime", "current_localtimestamp"), "reads the clock"),
    **dict.fromkeys(("json_deserialize_sql", "json_serialize_plan", "json_serialize_sql"), "reads SQL"),
    "index_key": "reads the catalog",
    **dict.fromkeys(
        ("aggregate", "array_aggr", "array_aggregate", "list_aggr", "list_aggregate"),
        "calls an aggregate by its name, which may be a random one",
    ),
    **dict.fromkeys(
        ("cast_to_type", "combine", "create_sort_key", "finalize", "get_type", "icu_sort_key", "invoke", "make_type",
         "parse_duckdb_log_message", "remap_struct", "replace_type", "to_aggregate_state", "unpivot_list",
         "variant_bytes_to_variant", "variant_comparator", "variant_normalize", "variant_to_parquet_variant"),
        "is DuckDB's own machinery and trusts its arguments",
    ),
}  # fmt: skip


def parse_where(text: str) -> str:
    """The expression without surrounding space, once it is known to be one, safe and boolean."""
    text = text.strip()
    if not text or len(text) > LONGEST:
        raise _refusal(
            text,
            found=f"{len(text):,} characters" if text else "nothing",
            expected=f"a SQL expression of 1 to {LONGEST:,} characters",
            remedy="Leave --where out to consider every sequence.",
        )
    with _empty_part(text) as connection:
        for node in _nodes(_syntax_tree(connection, text)):
            _check(text, node)
        _require_boolean(connection, text)
    return text


def matching_ids(store: Store, part: str, where: str) -> np.ndarray:
    """Ids of the part's sequences for which the expression is true, ascending.

    A sequence that crosses documents (packing concatenate) counts as its first token's document.
    """
    where = parse_where(where)
    with _locked_part(store, part) as connection:
        matching = connection.sql(statement("candidates/matching")).filter(where)
        try:
            found = matching.project("sequence_id").order("sequence_id").to_arrow_table()
        except duckdb.IOException as error:
            raise _unreadable(store, part, error) from error
        except duckdb.Error as error:
            raise _refusal(
                where,
                expected=f"an expression that can be computed for every sequence of part {part}",
                found=_first_line(error),
                remedy="Guard the value: try_cast(… as integer) and try(…) give null, which does not match.",
            ) from error
    return found["sequence_id"].to_numpy()


def _syntax_tree(connection: duckdb.DuckDBPyConnection, text: str) -> dict:
    """The expression's syntax tree.

    It has to parse without parentheses, which `true) or (true` does not, and within them, which `true limit 1` and
    `true; select 1` do not. The line break ends a comment before the closing parenthesis.
    """
    _condition(connection, text, f"({text}\n)")
    return _condition(connection, text, text)


def _condition(connection: duckdb.DuckDBPyConnection, text: str, written: str) -> dict:
    selects, bare = _selects(connection, text, written), _selects(connection, text, "true")
    conditions = [select.pop("where_clause", None) for select in selects]
    bare[0].pop("where_clause")
    if selects != bare or not all(conditions):  # group by, union, a second statement: anything beside the condition
        raise _not_one_expression(text, "more than an expression")
    return conditions[0]


def _selects(connection: duckdb.DuckDBPyConnection, text: str, written: str) -> list[dict]:
    """The statements that `written` makes of a select, one in all good cases."""
    try:
        tree = json.loads(rows(connection, "candidates/syntax_tree", expression=written)[0]["tree"])
    except RecursionError as error:
        raise _not_one_expression(text, "one that is nested too deeply") from error
    except duckdb.Error as error:  # text that is no Unicode does not even reach the parser
        raise _not_one_expression(text, _first_line(error)) from error
    if tree["error"]:
        # What follows the first sentence is advice about DuckDB's settings.
        raise _not_one_expression(text, tree["error_message"].splitlines()[0].split(". ")[0])
    return [parsed["node"] for parsed in tree["statements"]]


def _nodes(tree: object) -> Iterator[dict]:
    """Every syntax node, however deep and under whatever key; a loop, as the user sets the depth."""
    pending = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if "class" in item:
                yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _check(text: str, node: dict) -> None:
    kind = node["class"]
    if kind not in ALLOWED or (kind == "OPERATOR" and node["type"] not in ALLOWED_OPERATORS):
        raise _refusal(
            text,
            expected="comparisons, and/or/not, between, in, like, is null, case, cast, arithmetic and functions",
            found=REFUSED.get(kind) or node["type"].lower().replace("_", " "),
            remedy=REMEDIES.get(kind, "Say it with the columns of one sequence and its document."),
        )
    if kind == "COLUMN_REF":
        _check_column(text, node["column_names"])
    elif kind == "FUNCTION":
        _check_function(text, node)


def _check_column(text: str, path: list[str]) -> None:
    if len(path) != 1 or path[0].lower() not in COLUMNS:
        raise _refusal(
            text,
            expected=f"columns among {', '.join(COLUMNS)}",
            found=repr(".".join(path)),
            remedy="Name columns without their table, text in 'single quotes', metadata as metadata->>'key'.",
        )


def _check_function(text: str, node: dict) -> None:
    path = node["qualified_name"]["path"]
    name = node["function_name"].lower()
    plain = len(path) == 1 and not (node["distinct"] or node["filter"] or node["order_bys"]["orders"])
    if plain and name in _callable_functions():
        return
    reason = IMPURE.get(name, "is unknown, or no pure function of one row") if plain else "is not called as name(…)"
    raise _refusal(
        text,
        expected="functions of one row that read nothing else, called by their plain name",
        found=f"{'.'.join(path)}, which {reason}",
        remedy="See DuckDB's text, numeric, list and JSON functions; lower(text), len(token_ids) and the like.",
    )


@cache
def _callable_functions() -> frozenset[str]:
    with duckdb.connect() as connection:
        pure = {row["function_name"] for row in rows(connection, "candidates/pure_functions")}
    return frozenset(name for name in pure | PURE_MACROS if name not in IMPURE and not name.startswith("__"))


def _require_boolean(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Bind the expression: names exist, types fit, and the result is true, false or null."""
    try:
        (kind,) = connection.sql(statement("candidates/matching")).project(text).types
    except duckdb.Error as error:
        raise _refusal(
            text,
            expected="an expression whose types and functions fit the columns",
            found=_first_line(error),
            remedy="Cast where types differ, as in (metadata->>'year')::integer > 1990.",
        ) from error
    if kind != "BOOLEAN":
        raise _refusal(
            text,
            expected="an expression that is true or false",
            found=f"one of type {str(kind).strip(chr(34))}",
            remedy="Compare it with something.",
        )


@contextmanager
def _empty_part(text: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A locked connection with a part of no rows: enough to parse and bind."""
    with duckdb.connect() as connection:
        for relation in RELATIONS:
            connection.register(f"part_{relation}", SCHEMAS[relation].empty_table())
        _lock(connection, [])
        yield connection


@contextmanager
def _locked_part(store: Store, part: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that can read the two files of one part and nothing else."""
    with duckdb.connect() as connection:
        configure(connection, store)
        try:
            for relation in RELATIONS:
                part_view(connection, store, f"part_{relation}", relation, part)
        except duckdb.Error as error:
            raise _unreadable(store, part, error) from error
        _lock(connection, [str(store.file(relation, part)) for relation in RELATIONS])
        yield connection


def _lock(connection: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    # The time zone is the machine's otherwise, and a date would differ between workers.
    connection.execute("set TimeZone = 'UTC'")
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set autoload_known_extensions = false")
    connection.execute("set allowed_paths = $files", {"files": files})
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _refusal(text: str, *, expected: str, found: str, remedy: str) -> InputError:
    shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    return InputError(f"where {shown!r}", expected=expected, found=found, remedy=remedy)


def _not_one_expression(text: str, found: str) -> InputError:
    return _refusal(
        text,
        expected="exactly one SQL expression",
        found=found,
        remedy="Write a condition, such as source = 'x' and n_tokens > 50; no statement, no semicolon.",
    )


def _unreadable(store: Store, part: str, error: Exception) -> StoreError:
    return StoreError(
        f"part {part} of store {store.root}",
        expected="readable documents and sequences",
        found=_first_line(error),
        remedy="Restore the store's files, or ingest the corpus anew.",
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".!")
