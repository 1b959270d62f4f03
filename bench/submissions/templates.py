"""`bench new`: writes a plugin that runs and passes its checks, to start from. No torch."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path

from bench.core.errors import BenchError, UnavailableError
from bench.registry.submission import NAME_PATTERN, did_you_mean

AUTHOR = "Your Name"
"""Placeholder in a new card; `bench submit` rejects it."""

ATTACK_TEMPLATE = '''"""{title}: an attack to start from. Say in one sentence what it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin


@dataclass(frozen=True)
class {class_name}:
    """Gradient ascent on the margin from a random start, with steps that shrink."""

    name = "{name}"
    needs = Access.GRADIENTS
    summary = "Sign ascent on the margin with shrinking steps."

    steps: int = 20
    rate: float = 0.5
    """First step length, in radii of the ball."""

    def start(self, problem: Problem) -> Tensor:
        """A random point of the perturbation set; queries are not allowed here."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One ascent step and a projection; `problem.t` [n] counts the steps of each image."""
        gradient = problem.gradient(adv, margin).gradient
        rate = self.rate * (1 - problem.t / self.steps)
        return problem.ball.ascend(adv, gradient, rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with these parameters."""
    yield {class_name}()
'''

DEFENSE_TEMPLATE = '''"""{title}: a defense to start from. Say in one sentence what it does."""

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
        """Logits of the mean of each image and its 3 x 3 average."""
        blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        logits: Tensor = self.classifier((images + blurred) / 2)
        return logits


def build(loader: Loader) -> nn.Module:
    """The undefended network on blurred images; `loader.weights(net, file)` loads your weights."""
    return {class_name}(loader.defense("undefended"))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register it. Rounding would need a `bpda`, random numbers `randomness`."""
    yield Defense(name="{name}", build=build, summary="Classifies blurred images.")
'''

THREAT_TEMPLATE = '''"""{title}: a threat model to start from. Say here what the attacker may do."""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Access, Fraction, LeaderboardProtocol, Linf, ThreatModel, hookimpl


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Register the threat model; the protocol, what is asked of defenses, is no part of its id."""
    yield ThreatModel(
        name="{name}",
        dataset="digits",
        ball=Linf(Fraction(25, 255)),  # an exact fraction, not 0.098
        access=Access.GRADIENTS,
        protocol=LeaderboardProtocol(required=("pgd", "transfer-learned", "square", "hopskipjump")),
        summary="Each pixel may change by 25/255; white-box access.",
    )
'''

CARD_TEMPLATE = """# What lists show without running plugin.py.
schema = 1
kind = "{kind}"
name = "{name}"
title = "{title}"
authors = ["{author}"]
licence = "MIT"
summary = ""
cite = ""  # arXiv:1412.6572, doi:10.1000/182 or https://...
"""

CLAIM_TEMPLATE = """
# One for each threat model under which you claim a robust accuracy; it is shown beside the result.
# [[claims]]
# threat = "digits-linf"
# robust = 0.30
"""

README_TEMPLATE = """# {title}

    bench check {name}          run all contract checks of a {kind}
    bench submit {name}         add it to the submissions; the next run evaluates it

`{name}` stands for the path of this folder. `plugin.py` holds the {kind}, `card.toml` its metadata.
Weights belong into `weights.safetensors`, with their SHA-256 in the card.
"""

TEMPLATES = {"attack": ATTACK_TEMPLATE, "defense": DEFENSE_TEMPLATE, "threat": THREAT_TEMPLATE}
CHALLENGE = "challenge"
"""A kind of template with a module of its own: it reads images."""


def write_template(kind: str, name: str, folder: Path = Path()) -> Path:
    """Write a plugin of this kind into `folder`/`name`; returns that path.

    Raises BenchError for an unknown kind, an invalid name and an existing folder, UnavailableError
    where the folder cannot be written.
    """
    if kind not in TEMPLATES:
        suggestion = did_you_mean(kind, [*TEMPLATES, CHALLENGE])
        raise BenchError(f"no template is named {kind!r}{suggestion}.")
    place = new_place(name, folder)
    write_files(place, template_files(kind, name))
    return place


def new_place(name: str, folder: Path) -> Path:
    """The path of a new plugin; BenchError for an invalid name and where something is there."""
    if not NAME_PATTERN.fullmatch(name):
        raise BenchError(
            f"the name came as {name!r}; it must be 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "a letter or digit first."
        )
    place = folder / name
    if place.exists():
        raise BenchError(f"{place} exists already; choose another name, or move it.")
    return place


def write_files(place: Path, texts: Mapping[str, str]) -> None:
    """Write text files into a new folder. Raises UnavailableError where that is impossible."""
    try:
        place.mkdir(parents=True)
        for file, text in texts.items():
            (place / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnavailableError(
            f"{place} cannot be written: {error.strerror}; choose another --folder."
        ) from error


def template_files(kind: str, name: str) -> dict[str, str]:
    """The files of a new plugin: name -> content."""
    words = re.findall(r"[a-z0-9]+", name)
    title = " ".join(words).capitalize()
    class_name = "".join(word.capitalize() for word in words)
    imports = [line for line in TEMPLATES[kind].splitlines() if " import " in line]
    taken = {*keyword.kwlist, *re.findall(r"\w+", " ".join(imports))}
    free = class_name[0].isalpha() and class_name not in taken
    filled = {"kind": kind, "name": name, "title": title, "author": AUTHOR}
    filled["class_name"] = class_name if free else f"My{class_name}"
    card = CARD_TEMPLATE + (CLAIM_TEMPLATE if kind == "defense" else "")
    parts = {"plugin.py": TEMPLATES[kind], "card.toml": card, "README.md": README_TEMPLATE}
    return {file: text.format(**filled) for file, text in parts.items()}
