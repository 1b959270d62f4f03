"""What `--set`, `--eps` and `--norm` mean: the names of variants of attacks and threat models."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from bench.core.errors import BenchError
from bench.core.radii import exact_fraction, radius_text
from bench.core.variant_names import is_variant, variant_name

Grid = Mapping[str, Sequence[str]]
"""The values of each parameter, as text."""

AttackSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Variants of an attack: pgd.steps=10,20 or pgd.rate=0.05."),
]
Radii = Annotated[
    str, typer.Option("--eps", help="Other radii for the threat models: 2/255,4/255,8/255.")
]
NormName = Annotated[
    str, typer.Option("--norm", help="Another norm for the threat models: linf, l2 or l1.")
]
NORM_NAMES = {name.lower(): name for name in ("Linf", "L2", "L1")}


def read_settings(settings: Sequence[str], attack: str | None = None) -> dict[str, Grid]:
    """By attack the values that `--set` options give its parameters, in their order.

    `attack` is the one that a setting without a name is for; None: each must name one. Raises
    BenchError where a setting cannot be read, or names another attack than `attack`.

    >>> read_settings(["pgd.steps=10,20", "pgd.rate=0.1"])
    {'pgd': {'steps': ['10', '20'], 'rate': ['0.1']}}
    >>> read_settings(["steps=10,20"], "pgd")
    {'pgd': {'steps': ['10', '20']}}
    """
    example = "steps=10,20" if attack else "pgd.steps=10,20"
    grids: dict[str, dict[str, Sequence[str]]] = {}
    for text in settings:
        place, _, values = text.partition("=")
        named, _, parameter = place.strip().rpartition(".")
        whose, given = named or attack or "", [value.strip() for value in values.split(",")]
        if not whose or not parameter or not all(given):
            form = "parameter=values" if attack else "attack.parameter=values"
            raise BenchError(f"--set is {text!r}; write {form}: {example}.")
        if attack not in (None, whose):
            raise BenchError(f"--set is {text!r}; this command sets parameters of {attack} alone.")
        grids.setdefault(whose, {})[parameter] = given
    return dict(grids)


def variants_of(settings: Sequence[str]) -> list[str]:
    """The names of the variants that `--set` describes: every combination of an attack's values.

    Raises BenchError where a setting cannot be read.

    >>> variants_of(["pgd.steps=10,20", "pgd.rate=0.1", "bim.steps=5"])
    ['pgd[steps=10,rate=0.1]', 'pgd[steps=20,rate=0.1]', 'bim[steps=5]']
    """
    return [
        variant_name(attack, dict(zip(grid, chosen, strict=True)))
        for attack, grid in read_settings(settings).items()
        for chosen in itertools.product(*grid.values())
    ]


def threat_variants_of(threats: Sequence[str], eps: str = "", norm: str = "") -> list[str]:
    """The names of the threat models that `--threat`, `--eps` and `--norm` describe together.

    Raises BenchError where a radius or norm cannot be read, or no threat model is named.

    >>> threat_variants_of(["digits-linf"], "8/255,0.1")
    ['digits-linf[eps=8/255]', 'digits-linf[eps=0.1]']
    >>> threat_variants_of(["digits-linf"], "0.5", "l2")
    ['digits-linf[norm=L2,eps=0.5]']
    """
    if not eps and not norm:
        return list(threats)
    option = "--eps" if eps else "--norm"
    if not threats or "all" in threats:
        raise BenchError(f"{option} came without a name in --threat; name a threat model to vary.")
    written = next((name for name in threats if is_variant(name)), "")
    if written:
        raise BenchError(f"--threat is {written!r}; give the set there or by {option}, not both.")
    settings = [{"norm": _norm(norm)} if norm else {}]
    if eps:
        radii = [radius_text(exact_fraction(text.strip())) for text in eps.split(",")]
        settings = [{**settings[0], "eps": radius} for radius in dict.fromkeys(radii)]
    return [variant_name(name, chosen) for name in threats for chosen in settings]


def _norm(text: str) -> str:
    found = NORM_NAMES.get(text.strip().lower())
    if found is None:
        raise BenchError(f"--norm is {text!r}; use one of {', '.join(NORM_NAMES)}.")
    return found
