"""A submission's folder: its card, read and refused without importing a line of its code. No torch.

A folder holds `card.toml`, `plugin.py`, and where weights are needed `weights.safetensors`; a
`README.md` may stand beside them. Nothing else is looked at, and no name is taken from inside a
file before the file has passed the rules below.
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

from bench.core.cards import Card
from bench.core.errors import BenchError
from bench.core.hashing import digest

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
CITE_PATTERN = re.compile(r"|arXiv:\d{4}\.\d{4,5}(v\d+)?|doi:10\.\d{4,9}/\S+|https?://[^\s<>\"']+")
MAX_FILE_BYTES = {  # bytes; a card or a program beyond these is something else
    "card.toml": 64 << 10,
    "plugin.py": 1 << 20,
    "README.md": 1 << 20,
    "weights.safetensors": 2 << 30,
}
COMPLAINTS = 10
"""So many are told of one card."""


def _text(value: str) -> str:
    """Refuse what a page could show as something else."""
    hidden = {c for c in value if unicodedata.category(c) in {"Cc", "Cf", "Cs"}} - {"\n"}
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
    """What the author says holds, under one threat model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    threat: Name
    robust: float = Field(ge=0, le=1)
    """Share of all examples that stay right."""
    cite: Cite = ""


class SubmissionCard(BaseModel):
    """`card.toml`: all that a list needs, so that listing never imports a stranger's code."""

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
    """SHA-256 of weights.safetensors; empty where the entry has none."""


@dataclass(frozen=True)
class Submission:
    """One submission as it lies in its folder."""

    card: SubmissionCard
    folder: Path
    files: dict[str, str]
    """File name -> SHA-256."""

    @property
    def digest(self) -> str:
        """Of every file that counts."""
        return digest(self.files)

    def content(self, name: str) -> bytes:
        """A file's bytes; BenchError where they are no longer those whose digest was read."""
        path = self.folder / name
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.files[name]:
            raise BenchError(f"{path} changed while it was read; load it again")
        return content


def read_submission(folder: Path) -> Submission:
    """Read a submission's folder; BenchError says which rule it breaks."""
    files = _files(folder)
    for needed in ("card.toml", "plugin.py"):
        if needed not in files:
            raise BenchError(f"{folder} holds no {needed}; `bench new` writes one to start from.")
    card = parse_card((folder / "card.toml").read_bytes(), folder.name)
    _weights_as_declared(card, files)
    return Submission(card, folder, files)


def parse_card(content: bytes, folder: str) -> SubmissionCard:
    """A card from the bytes of its file; `folder` must carry the card's name."""
    where = f"card.toml of {folder!r}"
    try:
        table = tomllib.loads(content.decode("utf-8"))
    except RecursionError as error:  # brackets in brackets, thousands of them
        raise BenchError(f"{where} is not TOML in UTF-8: RecursionError: {error}.") from error
    except ValueError as error:  # a TOMLDecodeError, or what int() says of 5,000 digits
        raise BenchError(f"{where} is not TOML in UTF-8: {error}.") from error
    try:
        card = SubmissionCard.model_validate(table)
    except ValidationError as error:
        raise BenchError(f"{where}: {_sentence(error)}.") from error
    if card.name != folder:
        raise BenchError(f"{where} says the name {card.name!r}; name folder and card the same.")
    return card


def submission_card(entry: Submission) -> Card:
    """How lists show an entry whose code was not imported."""
    card = entry.card
    claims = [{"threat": c.threat, "robust": c.robust, "cite": c.cite} for c in card.claims]
    detail = {
        "title": card.title,
        "authors": card.authors,
        "licence": card.licence,
        "claims": claims,
        "imported": False,
    }
    return Card(card.kind, card.name, "submission", "", card.cite, card.summary, detail)


def _weights_as_declared(card: SubmissionCard, files: dict[str, str]) -> None:
    found = files.get("weights.safetensors", "")
    if found != card.weights:
        raise BenchError(
            f"card.toml of {card.name!r} declares weights {card.weights[:12] or 'none'!r}, the "
            f'folder holds {found[:12] or "none"!r}; write weights = "{found}" into the card.'
        )


def _files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the regular files that count, refusing all that is not one."""
    if not folder.is_dir():
        raise BenchError(f"{folder} is no folder; an entry is a folder with a card.toml.")
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
        raise BenchError(f"{path} is a link, folder or device; an entry holds plain files only.")
    if status.st_size > limit:
        raise BenchError(f"{path} has {status.st_size} bytes; at most {limit} are allowed.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sentence(error: ValidationError) -> str:
    """The first complaints, field first, and how many more there are."""
    details = error.errors()
    told = [_complaint(dict(detail)) for detail in details[:COMPLAINTS]]
    more = len(details) - len(told)
    return "; ".join([*told, *([f"and {more} more complaints"] if more else [])])


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
    return f"field {field!r} came as {_came(detail['input'])}: {message}"


def _came(value: object) -> str:
    """The beginning of what a field held, or its type where it is too large to be printed."""
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return f"a huge {type(value).__name__}"


def _keys(model: type[BaseModel]) -> list[str]:
    return [info.alias or key for key, info in model.model_fields.items()]


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint for a misspelt name, and what is known: `. Did you mean 'pgd'? Known: fgsm, pgd`.

    >>> near("pdg", ["pgd"])
    ". Did you mean 'pgd'? Known: pgd"
    """
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f".{hint} Known: {', '.join(sorted(known)) or 'none'}"
