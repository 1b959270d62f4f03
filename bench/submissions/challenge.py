"""`bench new challenge`: writes a package with a data set and threat models of an organiser."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench.core.errors import UnavailableError
from bench.data.datasets import data_folder, first_examples
from bench.submissions.templates import new_place, write_files
from plugins.datasets.image_folder import image_folder

MODULE_TEMPLATE = '''"""Data set and threat models of the challenge {name}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.plugin import (
    L2,
    Dataset,
    Fraction,
    Images,
    LeaderboardProtocol,
    Linf,
    ThreatModel,
    hookimpl,
)
from plugins.datasets.image_folder import folder_images

NAME = "{name}"
CLASSES = (
{classes}
)
SIZE = {size}  # height and width in pixels
EXAMPLES = {examples}
# SHA-256 of the images; others are refused.
DIGEST = "{digest}"

LINF_ATTACKS = ("apgd-ce", "pgd-margin", "square", "hopskipjump")
L2_ATTACKS = ("apgd-ce", "pgd-margin", "square-l2-100", "hopskipjump")


def read(folder: Path | None) -> Images:
    """Read the images from the subfolder NAME of the data folder."""
    return folder_images((folder or Path()) / NAME, SIZE, EXAMPLES, NAME)


@hookimpl
def bench_datasets() -> Iterator[Dataset]:
    """Register the data set; it has no training half."""
    yield Dataset(
        name=NAME,
        classes=CLASSES,
        shape=(3, SIZE, SIZE),
        load=read,
        test_size=EXAMPLES,
        digest=DIGEST,
        summary=f"{{EXAMPLES}} images of the challenge {{NAME}}.",
        local=True,
    )


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Register two leaderboards; another radius, access or budget makes another leaderboard."""
    yield ThreatModel(
        name=f"{{NAME}}-linf",
        dataset=NAME,
        ball=Linf(Fraction(8, 255)),
        examples=min(EXAMPLES, 500),
        protocol=LeaderboardProtocol(required=LINF_ATTACKS),
        order=0,
        summary="Each pixel may change by 8/255; white-box.",
    )
    yield ThreatModel(
        name=f"{{NAME}}-l2",
        dataset=NAME,
        ball=L2(Fraction(1, 2)),
        examples=min(EXAMPLES, 500),
        protocol=LeaderboardProtocol(required=L2_ATTACKS),
        order=1,
        summary="Changes of Euclidean length 1/2; white-box.",
    )
'''
PROJECT_TEMPLATE = """[project]
name = "{name}"
version = "1.0"

[project.entry-points.bench]
{module} = "{module}"

[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
py-modules = ["{module}"]
"""
CHALLENGE_README = """# {name}

    uv pip install ./{name}         register data set and threat models
    bench check {name}              check the data set; `bench check {name}-linf` the threat model
    bench submit FOLDER             take in every zip file of a folder
    bench run --threat {name}-linf --workers 2
    bench leaderboard --export site

The images lie in the subfolder `{name}` of the folder that `BENCH_DATA` names, with one subfolder
for each class, on every machine. Radii, access, budget and required attacks: `{module}.py`.
"""


def write_challenge(name: str, folder: Path, size: int, examples: int) -> Path:
    """Write the package of a challenge into `folder`/`name`; returns that path.

    Its images are those in the subfolder `name` of the data folder, with one subfolder for each
    class: `size` x `size` pixels, at most `examples`. Their number, classes and digest are written
    into the package. Raises BenchError for an invalid name and an existing folder, UnavailableError
    where the images cannot be read or the folder cannot be written.
    """
    place = new_place(name, folder)
    root = data_folder() / name
    try:
        dataset = image_folder(root, size, examples, name=name)
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"the images of the challenge {name} could not be read from {root}: {error}"
        ) from error
    values = {
        "name": name,
        "module": module_name(name),
        "classes": "\n".join(f"    {_literal(label)}," for label in dataset.classes),
        "size": size,
        "examples": dataset.test_size,
        "digest": first_examples(dataset, dataset.test_size).digest,
    }
    texts = {
        f"{values['module']}.py": MODULE_TEMPLATE,
        "pyproject.toml": PROJECT_TEMPLATE,
        "README.md": CHALLENGE_README,
    }
    write_files(place, {file: text.format(**values) for file, text in texts.items()})
    return place


def module_name(name: str) -> str:
    """A name of a Python module that no other package is likely to have: `bench_` and the name."""
    return "bench_" + re.sub(r"[^a-z0-9]", "_", name)


def _literal(text: str) -> str:
    """A Python literal in the quotes that the formatter prefers."""
    return repr(text) if '"' in text else json.dumps(text, ensure_ascii=False)
