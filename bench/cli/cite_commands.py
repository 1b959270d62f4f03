"""`bench cite`: BibTeX of what a database used."""

from __future__ import annotations

import sys

import typer

from bench.cli.options import Database


def add_cite_commands(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command("cite")(print_citations)


def print_citations(db: Database = None) -> None:
    """Print BibTeX entries of every attack, defense and data set with results."""
    from bench.results.citations import load_citations
    from bench.store import Store
    from bench.store.damage import explained_damage

    with explained_damage(db), Store.open(db, read_only=True) as store:
        found = load_citations(store)
    for entry in found.entries:
        print(f"{entry}\n")
    if found.without:
        print(f"without a citation: {', '.join(found.without)}", file=sys.stderr)
