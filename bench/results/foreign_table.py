"""Reads tables of published figures from CSV or TOML, with every printed digit kept.

A CSV file has one row per figure and the columns of `FigureRow`; a TOML file has the fields of
`TableFile`, whose `n`, `of` and `norm` hold for every row that states none. Percentages and shares
are both read.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.core.errors import BenchError

_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
_STRICT = ConfigDict(extra="forbid", frozen=True)
CLEAN_NAMES = frozenset(("", "clean", "none", "no attack"))
"""Names of the attack in a row that has the accuracy on clean images."""
ONE_STEP = frozenset(("fgsm", "fgm", "r+fgsm", "rfgsm", "rs-fgsm", "step-ll", "fgm-l2", "fgm-l1"))
ITERATIVE = frozenset(
    ("pgd", "bim", "i-fgsm", "ifgsm", "mi-fgsm", "apgd", "apgd-ce", "apgd-t", "c&w", "cw",
     "deepfool", "fab", "autoattack", "iter-ll")
)  # fmt: skip
UNION_NAMES = frozenset(("union", "worst case", "worst-case", "any", "all attacks"))


class PrintedShare(NamedTuple):
    """A share as it was printed."""

    value: Fraction
    """0 to 1."""
    unit: Fraction
    """One unit of the last printed digit."""

    def matches(self, share: Fraction) -> bool:
        """Whether a share is printed like this, rounded or cut off."""
        return self.value <= share < self.value + self.unit or (
            abs(share - self.value) <= self.unit / 2
        )


class FigureRow(BaseModel):
    """One row as it stands in a file; every value is text."""

    model_config = _STRICT
    attack: str
    defense: str
    accuracy: str
    eps: str = ""
    norm: str = ""
    count: str = ""
    """The number of examples that the text gives for this figure."""
    n: str = ""
    of: Literal["", "all", "correct"] = ""
    """Whether n counts all examples, or those that are right on the clean image."""
    steps: str = ""
    restarts: str = ""
    union_of: tuple[str, ...] = ()
    """Attacks of which this row is the worst case per example."""
    tags: tuple[str, ...] = ()

    @field_validator("union_of", "tags", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """A cell of a CSV file: names with semicolons between them."""
        return [v for v in value.split(";") if v] if isinstance(value, str) else value


class StatedPair(BaseModel):
    """Two attacks on the same examples: how many only one of them left right."""

    model_config = _STRICT
    defense: str
    eps: str
    one_step: str
    iterative: str
    only_one_step: int = Field(ge=0)
    """Examples that are right under the one-step attack alone."""
    only_iterative: int = Field(ge=0)


class CountClaim(BaseModel):
    """A statement of the text: k of the n rows with a tag have at most this accuracy."""

    model_config = _STRICT
    tag: str = ""
    at_most: str = ""
    k: int
    n: int


class TableFile(BaseModel):
    """A TOML file."""

    model_config = _STRICT
    name: str = ""
    cite: str = ""
    data: str = ""
    norm: str = ""
    unit: Literal["", "percent", "share"] = ""
    n: str = ""
    of: Literal["", "all", "correct"] = ""
    clean: str = ""
    row: tuple[FigureRow, ...]
    pair: tuple[StatedPair, ...] = ()
    claim: tuple[CountClaim, ...] = ()


@dataclass(frozen=True)
class PublishedFigure:
    """One accuracy of a table."""

    table: str
    attack: str
    defense: str
    norm: str
    eps: Fraction | None
    accuracy: PrintedShare
    count: int | None
    n: int | None
    of: str
    """`all`, `correct`, or empty where the table does not say."""
    steps: int | None
    """1: one step. None: not known."""
    restarts: int
    union_of: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether it is the accuracy on unchanged images."""
        return self.attack.lower() in CLEAN_NAMES or self.eps == 0

    @property
    def is_union(self) -> bool:
        """Whether it is the worst case over other rows."""
        return bool(self.union_of) or self.attack.lower() in UNION_NAMES

    @property
    def base(self) -> str:
        """The attack's name in lower case, without a number of steps at its end."""
        return _base_and_steps(self.attack)[0]

    def __str__(self) -> str:
        radius = "" if self.eps is None else f" at {self.norm} {float(self.eps):.4g}".rstrip()
        return f"{self.attack} on {self.defense}{radius}"


@dataclass(frozen=True)
class PublishedTable:
    """A table of published figures."""

    name: str
    data: str
    figures: tuple[PublishedFigure, ...]
    pairs: tuple[StatedPair, ...] = ()
    claims: tuple[CountClaim, ...] = ()

    def clean(self, defense: str) -> PublishedFigure | None:
        """The clean accuracy of a defense; None where the table does not state it."""
        found = [f for f in self.figures if f.is_clean and f.defense in (defense, "")]
        return found[0] if found else None


def read_table(path: Path) -> PublishedTable:
    """Read a table. Raises BenchError where the file is missing or a value is not in order."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"the table {path} cannot be read: {error}") from error
    if path.suffix.lower() == ".csv":
        document = _csv_document(path, content)
    elif path.suffix.lower() == ".toml":
        document = _toml_document(path, content)
    else:
        raise BenchError(f"the table {path} is neither .csv nor .toml; save it as one of them.")
    try:
        file = TableFile.model_validate(document)
        return _table(path, file)
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(part) for part in detail["loc"])
        raise BenchError(f"the table {path} has {place}: {detail['msg']}.") from error
    except ValueError as error:
        raise BenchError(f"the table {path}: {error}.") from error


def _csv_document(path: Path, content: str) -> Mapping[str, Any]:
    lines = list(csv.DictReader(content.splitlines(), strict=True))
    if any(None in line or None in line.values() for line in lines):
        raise BenchError(f"the table {path} has a row with more or fewer values than its header.")
    rows = [{key.strip(): value.strip() for key, value in line.items()} for line in lines]
    return {"name": path.stem, "row": rows}


def _toml_document(path: Path, content: str) -> Mapping[str, Any]:
    try:
        document = tomllib.loads(content, parse_float=str)
    except tomllib.TOMLDecodeError as error:
        raise BenchError(f"the table {path} is no TOML file: {error}.") from error
    rows = [_as_text(row) for row in document.get("row", [])]
    pairs = [row | {"eps": str(row.get("eps", ""))} for row in document.get("pair", [])]
    claims = [row | {"at_most": str(row.get("at_most", ""))} for row in document.get("claim", [])]
    top = {key: value for key, value in document.items() if key not in ("row", "pair", "claim")}
    name = {"name": path.stem}
    return {**name, **_as_text(top), "row": rows, "pair": pairs, "claim": claims}


def _as_text(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, int | float) else v for k, v in values.items()}


def _table(path: Path, file: TableFile) -> PublishedTable:
    """Raises ValueError where a number is not in order."""
    if not file.row:
        raise ValueError("it has no rows")
    printed = [file.clean, *(row.accuracy for row in file.row)]
    scale = 100 if file.unit == "percent" or (not file.unit and _are_percent(printed)) else 1
    name = file.name or path.stem
    figures = [_figure(name, file, row, scale) for row in file.row]
    if file.clean:
        row = FigureRow(attack="clean", defense="", accuracy=file.clean, n="", of="all")
        figures.append(_figure(name, file.model_copy(update={"n": "", "of": ""}), row, scale))
    return PublishedTable(name, file.data, tuple(figures), file.pair, file.claim)


def _are_percent(printed: Sequence[str]) -> bool:
    values = [text.strip() for text in printed if text]
    return any(v.endswith("%") or (_DECIMAL.fullmatch(v) and Fraction(v) > 1) for v in values)


def _figure(table: str, file: TableFile, row: FigureRow, scale: int) -> PublishedFigure:
    base, steps = _base_and_steps(row.attack)
    known = 1 if base in ONE_STEP else steps
    return PublishedFigure(
        table=table,
        attack=row.attack,
        defense=row.defense,
        norm=row.norm or file.norm,
        eps=_radius(row.eps),
        accuracy=printed_share(row.accuracy, scale),
        count=_whole("count", row.count),
        n=_whole("n", row.n or file.n),
        of=row.of or file.of,
        steps=_whole("steps", row.steps) or known,
        restarts=_whole("restarts", row.restarts) or 1,
        union_of=row.union_of,
        tags=row.tags,
    )


def _base_and_steps(attack: str) -> tuple[str, int | None]:
    """`pgd` and 20 for `PGD-20`; without a number, 0 steps stand for several."""
    name = attack.strip().lower()
    found = re.fullmatch(r"(.*[a-z])[- ]?([0-9]+)", name)
    if found and found[1].rstrip("- ") in ITERATIVE:
        return found[1].rstrip("- "), int(found[2])
    return name, 0 if name in ITERATIVE else None


def printed_share(text: str, scale: int) -> PrintedShare:
    """A printed accuracy as a share; `scale` is 100 for percentages.

    Raises ValueError where it is no number from 0 to `scale`.

    >>> printed_share("22.0%", 100)
    PrintedShare(value=Fraction(11, 50), unit=Fraction(1, 1000))
    """
    digits = text.strip().removesuffix("%").strip()
    if not _DECIMAL.fullmatch(digits) or Fraction(digits) > scale:
        raise ValueError(f"the accuracy {text!r} is no number from 0 to {scale}")
    decimals = len(digits.partition(".")[2])
    return PrintedShare(Fraction(digits) / scale, Fraction(1, 10**decimals * scale))


def _radius(text: str) -> Fraction | None:
    if not text.strip():
        return None
    try:
        radius = Fraction(text.strip())
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"eps is {text!r}; write a number such as 0.031 or 8/255") from error
    if radius < 0:
        raise ValueError(f"eps is {text!r}; write a number of at least 0")
    return radius


def _whole(name: str, text: str) -> int | None:
    if not text.strip():
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text.strip()):
        raise ValueError(f"{name} is {text!r}; write a whole number")
    return int(text)
