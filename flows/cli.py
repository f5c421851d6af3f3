"""headwater on the command line: every command of the README; nothing imports this file."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)

@app.command()
def trace(store: str = typer.Option(...), model: str = typer.Option(...), queries: str = typer.Option(...), corpus: list[str] = typer.Option([])) -> None:
    from flows.parameters import ModelParameters, QueryParameters, TraceParameters
    from flows.trace import trace as flow
    from storage.prompts import read_prompts
    qs = tuple(QueryParameters(prompt=p.prompt, completion=p.completion, query_id=p.query_id) for p in read_prompts(queries))
    print(flow(TraceParameters(store=store, model=ModelParameters(name=model), queries=qs, corpus={"inputs": tuple(corpus)})))

@app.command()
def other() -> None:
    pass

def main() -> None:
    app()
