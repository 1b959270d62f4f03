"""`bench new`: writes a plugin that already runs, to change line by line. No torch."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from bench.core.errors import BenchError, UnavailableError
from bench.registry.submission import NAME_PATTERN, did_you_mean

AUTHOR = "Your Name"
"""Stands in a new card until its author writes another; `bench submit` asks for that."""

ATTACK = '''"""{title}: an attack to start from. Say in one sentence what it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import margin
from bench.plugin import Access, Attack, Problem, hookimpl


@dataclass(frozen=True)
class {class_name}:
    """Climb the margin from a random start, in steps that shrink; stay inside ball and box."""

    name = "{name}"
    needs = Access.GRADIENTS
    summary = "Sign ascent on the margin with shrinking steps."

    steps: int = 20
    rate: float = 0.5
    """First step length, in radii of the ball."""

    def start(self, problem: Problem) -> Tensor:
        """A random point of the set; nothing is asked of the defense here."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step uphill, back into the set. Each row keeps its own clock: `problem.t`."""
        uphill = problem.gradient(adv, margin).gradient
        rate = self.rate * (1 - problem.t / self.steps)
        return problem.ball.ascend(adv, uphill, rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Offer it with these parameters."""
    yield {class_name}()
'''

DEFENSE = '''"""{title}: a defense to start from. Say in one sentence what it does."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Defense, Loader, hookimpl


class {class_name}(nn.Module):
    """Blur each image a little, then classify: images [n, C, H, W] in [0, 1] to logits [n, K]."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Half the image, half its 3 x 3 mean; every image by itself."""
        blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        answer: Tensor = self.classifier((images + blurred) / 2)
        return answer


def build(loader: Loader) -> nn.Module:
    """The undefended network behind the blur; `loader.weights(net, file)` loads your weights."""
    return {class_name}(loader.defense("undefended"))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer it on the digits. Rounding would declare a `bpda`, dice `randomness`."""
    yield Defense(name="{name}", build=build, summary="The undefended network behind a blur.")
'''

THREAT = '''"""{title}: rules to start from. Say in one sentence who attacks what."""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Access, Fraction, Linf, ThreatModel, hookimpl


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Declare the rules; every one of them is part of the board's id."""
    yield ThreatModel(
        name="{name}",
        dataset="digits",
        ball=Linf(Fraction(25, 255)),  # exact: a radius is a fraction, never 0.098
        access=Access.GRADIENTS,
        required=("fgsm", "pgd"),
        summary="Every pixel may change by 25/255; the attacker knows everything.",
    )
'''

CARD = """# What lists show before a line of plugin.py is run.
schema = 1
kind = "{kind}"
name = "{name}"
title = "{title}"
authors = ["{author}"]
licence = "MIT"
summary = ""
cite = ""  # arXiv:1412.6572, doi:10.1000/182 or https://...
"""

CLAIM = """
# One for each threat model under which you say what holds; the board shows it beside what we find.
# [[claims]]
# threat = "digits-linf"
# robust = 0.30
"""

README = """# {title}

    bench check {name}          every promise of a {kind}, checked one by one
    bench submit {name}         into the list of entries; the next run plays it

`{name}` stands for this folder's path. `plugin.py` is the {kind}, `card.toml` says what it is.
Weights, where there are any, lie here as `weights.safetensors`, their SHA-256 in the card.
"""

TEMPLATES = {"attack": ATTACK, "defense": DEFENSE, "threat": THREAT}


def write_template(kind: str, name: str, folder: Path = Path()) -> Path:
    """Write a plugin of this kind into `folder`/`name`; gives that path.

    BenchError for an unknown kind, a name that cards do not allow, and a folder that is there;
    UnavailableError where none can be made.
    """
    if kind not in TEMPLATES:
        raise BenchError(f"no template is named {kind!r}{did_you_mean(kind, list(TEMPLATES))}.")
    if not NAME_PATTERN.fullmatch(name):
        raise BenchError(
            f"the name came as {name!r}; it must be 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "a letter or digit first."
        )
    place = folder / name
    if place.exists():
        raise BenchError(f"{place} is there already; choose another name or move it away.")
    try:
        place.mkdir(parents=True)
        for file, text in texts(kind, name).items():
            (place / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnavailableError(
            f"{place} cannot be written: {error.strerror}; choose another --folder."
        ) from error
    return place


def texts(kind: str, name: str) -> dict[str, str]:
    """File name -> content of a new plugin."""
    words = re.findall(r"[a-z0-9]+", name)
    title = " ".join(words).capitalize()
    class_name = "".join(word.capitalize() for word in words)
    imports = [line for line in TEMPLATES[kind].splitlines() if " import " in line]
    taken = {*keyword.kwlist, *re.findall(r"\w+", " ".join(imports))}
    free = class_name[0].isalpha() and class_name not in taken
    filled = {
        "kind": kind,
        "name": name,
        "title": title,
        "author": AUTHOR,
        "class_name": class_name if free else f"Entry{class_name}",
    }
    card = CARD + (CLAIM if kind == "defense" else "")
    parts = {"plugin.py": TEMPLATES[kind], "card.toml": card, "README.md": README}
    return {file: text.format(**filled) for file, text in parts.items()}
