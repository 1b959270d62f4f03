"""Reads and checks a submission's folder without importing its code. No torch.

A folder holds `card.toml`, `plugin.py`, where weights are needed `weights.safetensors`, and
optionally `README.md`. Any other file is refused.
"""

from __future__ import annotations

import hashlib
import re
import stat
import tomllib
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bench.core.cards import CARD_MODELS, Card, Claim, DefenseCard, SubmissionInfo
from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.core.visible_text import is_hidden

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
CITE_PATTERN = re.compile(r"|arXiv:\d{4}\.\d{4,5}(v\d+)?|doi:10\.\d{4,9}/\S+|https?://[^\s<>\"']+")
MAX_FILE_BYTES = {  # bytes; a card or a program beyond these is something else
    "card.toml": 64 << 10,
    "plugin.py": 1 << 20,
    "README.md": 1 << 20,
    "weights.safetensors": 2 << 30,
}
MAX_COMPLAINTS = 10
"""How many faults of one card a message lists."""


def _text(value: str) -> str:
    """Refuse invisible characters, with which a page could show another text."""
    hidden = {c for c in value if is_hidden(c)} - {"\n"}
    if hidden:
        shown = ", ".join(sorted(f"U+{ord(c):04X}" for c in hidden))
        raise ValueError(f"holds characters that cannot be seen ({shown}); remove them")
    if unicodedata.normalize("NFC", value) != value:
        raise ValueError("is not in Unicode normal form NFC; save it composed")
    return value


def _line(value: str) -> str:
    if "\n" in value:
        raise ValueError("holds a line break; write one line")
    return _text(value)


def _name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError("must be 1 to 64 of a-z, 0-9, '.', '_', '-', a letter or digit first")
    return value


def _cite(value: str) -> str:
    if not CITE_PATTERN.fullmatch(value):
        raise ValueError("must be arXiv:NNNN.NNNNN, doi:10.…, an http(s) address or empty")
    return value


Line = Annotated[str, Field(max_length=200), AfterValidator(_line)]
Name = Annotated[str, AfterValidator(_name)]
Cite = Annotated[str, Field(max_length=200), AfterValidator(_cite)]


class CardClaim(BaseModel):
    """A robust accuracy that the author claims under one threat model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    threat: Name
    robust: float = Field(ge=0, le=1)
    """Share of all examples, 0 to 1."""
    cite: Cite = ""


class SubmissionCard(BaseModel):
    """`card.toml`: what lists show, so that listing never imports a submission's code."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(alias="schema")
    kind: Literal["defense", "attack", "threat"]
    name: Name
    title: Line
    authors: list[Line] = Field(min_length=1, max_length=50)
    licence: Line
    cite: Cite = ""
    summary: Annotated[str, Field(max_length=4000), AfterValidator(_text)] = ""
    claims: list[CardClaim] = Field(default=[], max_length=50)
    weights: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of weights.safetensors; empty where the submission has none."""


@dataclass(frozen=True)
class Submission:
    """A submission's folder: its card and the digests of its files."""

    card: SubmissionCard
    folder: Path
    files: dict[str, str]
    """File name -> SHA-256."""

    @property
    def digest(self) -> str:
        """SHA-256 over the names and digests of all files."""
        return digest(self.files)

    def content(self, name: str) -> bytes:
        """A file's bytes. Raises BenchError where they have changed since the folder was read."""
        content = (self.folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.files[name]:
            raise BenchError(f"{self.folder / name} changed while it was read; load it again")
        return content


def read_submission(folder: Path) -> Submission:
    """Read a submission's folder. Raises BenchError where its files or its card break a rule."""
    files = _files(folder)
    for needed in ("card.toml", "plugin.py"):
        if needed not in files:
            raise BenchError(f"{folder} holds no {needed}; `bench new` writes one to start from.")
    card = parse_card((folder / "card.toml").read_bytes(), folder.name)
    _weights_as_declared(card, files)
    return Submission(card, folder, files)


def _toml_table(content: bytes, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8"))
    except RecursionError as error:  # thousands of nested brackets
        raise BenchError(f"{where} is not TOML in UTF-8: RecursionError: {error}.") from error
    except ValueError as error:  # a TOMLDecodeError, or int() of 5,000 digits
        raise BenchError(f"{where} is not TOML in UTF-8: {error}.") from error


def parse_card(content: bytes, folder: str) -> SubmissionCard:
    """Parse the bytes of `card.toml`; `folder` is the folder's name, which the card must repeat.

    Raises BenchError for anything but valid TOML in UTF-8 with valid fields.
    """
    where = f"card.toml of {folder!r}"
    try:
        card = SubmissionCard.model_validate(_toml_table(content, where))
    except ValidationError as error:
        raise BenchError(f"{where}: {_sentence(error)}.") from error
    if card.name != folder:
        raise BenchError(
            f"{where} has the name {card.name!r}; give the folder and the card the same name."
        )
    return card


def submission_card(submission: Submission) -> Card:
    """The card of a submission whose code was not imported."""
    card = submission.card
    shared: dict[str, Any] = {
        "name": card.name,
        "origin": "submission",
        "cite": card.cite,
        "summary": card.summary,
        "submission": SubmissionInfo(
            title=card.title, authors=tuple(card.authors), licence=card.licence
        ),
    }
    if card.kind == "defense":
        claims = tuple(Claim(c.threat, c.robust, c.cite) for c in card.claims)
        return DefenseCard(**shared, claims=claims)
    return CARD_MODELS[card.kind](**shared)


def _weights_as_declared(card: SubmissionCard, files: dict[str, str]) -> None:
    found = files.get("weights.safetensors", "")
    if found != card.weights:
        raise BenchError(
            f"card.toml of {card.name!r} declares weights {card.weights[:12] or 'none'!r}, the "
            f'folder holds {found[:12] or "none"!r}; write weights = "{found}" into the card.'
        )


def _files(folder: Path) -> dict[str, str]:
    """File name -> SHA-256; hidden files and `__pycache__` are skipped."""
    if not folder.is_dir():
        raise BenchError(f"{folder} is not a folder; a submission is a folder with a card.toml.")
    found = {}
    for name in sorted(path.name for path in folder.iterdir()):
        if name == "__pycache__" or name.startswith("."):
            continue
        found[name] = _hash(folder / name)
    return found


def _hash(path: Path) -> str:
    limit = MAX_FILE_BYTES.get(path.name)
    if limit is None:
        raise BenchError(
            f"{path.parent.name!r} holds {path.name!r}; it may hold {', '.join(MAX_FILE_BYTES)}."
        )
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise BenchError(
            f"{path} is a link, folder or device; a submission holds plain files only."
        )
    if status.st_size > limit:
        raise BenchError(f"{path} has {status.st_size} bytes; at most {limit} are allowed.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sentence(error: ValidationError) -> str:
    """The first faults of a card, each with its field, and the number of the others."""
    details = error.errors()
    shown = [_complaint(dict(detail)) for detail in details[:MAX_COMPLAINTS]]
    more = len(details) - len(shown)
    return "; ".join([*shown, *([f"and {more} more faults"] if more else [])])


def _complaint(detail: dict[str, Any]) -> str:
    place = [str(part) for part in detail["loc"]]
    field = ".".join(place)
    field = field if len(field) <= 80 else f"{field[:80]}…"
    if detail["type"] == "extra_forbidden":
        known = _keys(CardClaim if len(place) > 1 else SubmissionCard)
        return f"field {field!r} is unknown{did_you_mean(place[-1][:80], known)}"
    if detail["type"] == "missing":
        return f"field {field!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"field {field!r} came as {_shown(detail['input'])}: {message}"


def _shown(value: object) -> str:
    """The beginning of a field's value, or its type where it is too large to be printed."""
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return f"a huge {type(value).__name__}"


def _keys(model: type[BaseModel]) -> list[str]:
    return [info.alias or key for key, info in model.model_fields.items()]


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint for a misspelt name, with all known names, to end a sentence.

    >>> did_you_mean("pdg", ["pgd"])
    ". Did you mean 'pgd'? Known: pgd"
    """
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f".{hint} Known: {', '.join(sorted(known)) or 'none'}"
