"""Damage in sentences: what is wrong in any database, and why a command cannot read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.core.errors import UnavailableError
from bench.store.database import DamagedError, resolve_url, url_text
from bench.store.faults import FILE, READING_ERRORS, Fault
from bench.store.store import Store


def check_database(url: str | None) -> list[Fault]:
    """Every fault of a database, also of one that cannot be opened.

    Raises UnavailableError where it is missing, newer, or of another program.
    """
    try:
        with Store.open(url, read_only=True) as store:
            return store.check()
    except DamagedError as damage:
        return [Fault(FILE, "", "", damage.cause)]
    except READING_ERRORS as error:
        return [Fault(FILE, "", "", f"cannot be opened: {getattr(error, 'orig', error)}")]


@contextmanager
def explained_damage(url: str | None) -> Iterator[None]:
    """A context in which an error while reading a damaged database becomes one sentence.

    Where the check finds nothing, the error is one of the program and stays as it is.
    """
    try:
        yield
    except READING_ERRORS as error:
        found = check_database(url)
        if not found:
            raise
        name = url_text(resolve_url(url))
        more = f" and at {len(found) - 1} other places" if len(found) > 1 else ""
        raise UnavailableError(
            f"{name} is damaged at {found[0].sentence}{more}: `bench db check` lists every place,"
            " `bench db repair` removes them."
        ) from error
