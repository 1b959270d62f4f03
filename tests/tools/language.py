"""Measures the language of the project: shapes, named errors and retired words.

`python -m tests.tools.language` lists every place that tests/test_language.py counts.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

RETIRED = {
    "arena", "bout", "cage", "campaign", "corridor", "course", "court", "door", "entrant", "foe",
    "guest", "house", "jail", "lesson", "lumber", "school", "seat", "shelf", "twin", "whoever",
    "nobody", "everybody", "somebody", "walls", "guardian", "interview", "babble", "law", "taught",
    "heard", "hear", "game", "battery",
}  # fmt: skip
"""Words of an earlier, private vocabulary. DESIGN names the standard term for each."""

PHRASES = (r"stand[-_]ins?", r"standins?", r"lock(ed|s|ing)?[-_\s]+in", r"behind\s+walls")
"""Retired expressions of two words, as regular expressions over lower-case text."""

FORMS = {
    "shelves": "shelf", "schooling": "school", "seated": "seat", "seating": "seat",
    "caged": "cage", "jailed": "jail",
}  # fmt: skip
"""Inflected forms that no plural rule finds."""

OPEN, CLOSE = "<!-- renamed names -->", "<!-- end of renamed names -->"
"""Between these lines a Markdown file may write old names: a table from old to new."""

EXEMPT: dict[tuple[str, str], str] = {
    ("plugins/datasets/torchvision_datasets.py", "house"): "a class name of CIFAR-100",
    ("tests/store/servers.py", "nobody"): "the user without rights of Unix systems",
}
"""(file, word) -> why a string keeps a retired word: a fixed value or a name given elsewhere."""

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SIZE, _NUMBER = r"\s*[\w.*/+ ()-]+?\s*", r"\d+"
SHAPE = re.compile(rf"\[(?!\s*-?{_NUMBER}\s*,\s*-?{_NUMBER}\s*\])(?!\s*-)({_SIZE})(,{_SIZE})*\]")
"""`[n, C, H, W]`, `[n]` or `[32]`, but no interval such as `[0, 1]`."""


class Place(NamedTuple):
    """One finding: `file:line: what`."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


class Share(NamedTuple):
    """How many of `total` functions follow a rule, and the ones that do not."""

    total: int
    missing: list[Place]

    @property
    def reached(self) -> float:
        """From 0 to 1."""
        return 1 - len(self.missing) / max(self.total, 1)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> list[Path]:
    """Python files below folders of the repository, migrations left out."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [p for p in found if "__pycache__" not in p.parts and "migrations" not in p.parts]


def public_functions(path: Path) -> Iterator[Function]:
    """Public functions of a module and public methods of its classes; no nested functions."""
    yield from _public(ast.parse(path.read_text()).body)


def _public(body: list[ast.stmt]) -> Iterator[Function]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def signature(node: Function) -> str:
    """The annotations of all arguments and of the result, as source text."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    parts = [ast.unparse(argument.annotation) for argument in every if argument.annotation]
    return " ".join([*parts, ast.unparse(node.returns) if node.returns else ""])


def shapes(*folders: str) -> Share:
    """Public functions with Tensor or NDArray in the signature; missing: no shape in the text."""
    total, missing = 0, []
    for path in python_files(*folders):
        for node in public_functions(path):
            if not re.search(r"\b(Tensor|NDArray)\b", signature(node)):
                continue
            total += 1
            if not SHAPE.search(ast.get_docstring(node) or ""):
                missing.append(Place(_name(path), node.lineno, f"{node.name} states no shape"))
    return Share(total, missing)


def errors(*folders: str) -> Share:
    """Public functions that raise; missing: a raised class is not named in the docstring."""
    total, missing = 0, []
    for path in python_files(*folders):
        for node in public_functions(path):
            raised = set(_raised(node))
            if not raised:
                continue
            total += 1
            text = ast.get_docstring(node) or ""
            if unnamed := sorted(name for name in raised if not re.search(name, text)):
                what = f"{node.name} raises {', '.join(unnamed)} and does not name it"
                missing.append(Place(_name(path), node.lineno, what))
    return Share(total, missing)


def _raised(node: ast.AST) -> Iterator[str]:
    """Patterns of the classes raised in a function itself, functions inside it left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(child, ast.Raise) and child.exc is not None:
            cause = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            name = ast.unparse(cause).split(".")[-1]
            if name == "Exit":  # ends a command with an exit status; it is no error
                continue
            # A variable or a function that returns an error: any named error counts.
            yield rf"\b{name}\b" if name[0].isupper() else r"\w(Error|Exception|Exit|Stopped)\b"
        yield from _raised(child)


def retired(*folders: str) -> list[Place]:
    """Retired words in names, strings, comments and text files."""
    found = []
    for path in _texts(*folders):
        if path.name in ("language.py", "test_language.py"):
            continue  # the list itself and its tests
        pieces = _tokens(path) if path.suffix == ".py" else _paragraphs(path)
        for line, text in pieces:
            found += [Place(_name(path), at, word) for at, word in words(text, line)
                      if (_name(path), word) not in EXEMPT]  # fmt: skip
    return found


def words(text: str, line: int = 1) -> Iterator[tuple[int, str]]:
    """(line, retired word) for each one in a text that begins in `line`."""
    found = []
    for match in WORD.finditer(text):
        word = match.group().lower()
        base = FORMS.get(word) or (word if word in RETIRED else word.removesuffix("s"))
        if base in RETIRED:
            found.append((match.start(), word))
    for phrase in PHRASES:
        for match in re.finditer(rf"(?<![a-z]){phrase}(?![a-z])", text.lower()):
            found.append((match.start(), " ".join(match.group().split())))
    for start, word in sorted(found):
        yield line + text.count("\n", 0, start), word


def _texts(*folders: str) -> Iterator[Path]:
    kinds = (".py", ".md", ".toml", ".css", ".svg", ".yml", ".yaml", ".mako", ".txt", ".sh", "")
    for folder in folders:
        path = ROOT / folder
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            hidden = {"__pycache__", "_build", "artifacts"} & set(each.parts)
            if each.is_file() and each.suffix in kinds and not hidden:
                yield each


def _tokens(path: Path) -> Iterator[tuple[int, str]]:
    kinds = {tokenize.NAME, tokenize.STRING, tokenize.COMMENT}
    kinds.add(getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    """The text of a file, without tables of renamed names."""
    kept, open_ = [], False
    for line in path.read_text(errors="replace").split("\n"):
        open_ = (open_ or line.strip() == OPEN) and line.strip() != CLOSE
        kept.append("" if open_ else line)
    yield 1, "\n".join(kept)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


EVERYTHING = (
    "bench", "plugins", "leaderboard", "submissions", "tests", "docs", ".ci", "README.md",
    "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "justfile", ".github",
    ".pre-commit-config.yaml",
)  # fmt: skip


def main() -> None:
    """Print every finding and counts per folder."""
    chosen = sys.argv[1:] or EVERYTHING
    code = [folder for folder in chosen if folder.split("/")[0] in ("bench", "plugins")]
    shape, error, old = shapes(*code), errors(*code), retired(*chosen)
    for place in (*shape.missing, *error.missing, *old):
        print(place)
    print(f"shapes {shape.reached:.1%} of {shape.total}, errors {error.reached:.1%} of "
          f"{error.total}, {len(old)} retired words")  # fmt: skip
    print(Counter("/".join(p.file.split("/")[:2]) for p in old).most_common())
    print(Counter(p.what for p in old).most_common())


if __name__ == "__main__":
    main()
