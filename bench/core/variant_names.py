"""Names of variants, an entry with other parameters: `pgd[steps=100]`, `digits-linf[eps=0.1]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from bench.core.errors import BenchError

_WRITTEN = re.compile(r"(?P<base>[^\[\]]+)\[(?P<settings>[^\[\]]*)\]")
_NUMBER = re.compile(r"(?<==)([+-]?\d+(?:\.\d+)?(?:e[+-]?\d{1,2})?|\d+/0*[1-9]\d*)(?=[,\]])")
"""A value that is a number, within a variant's name."""
_EXAMPLES = {"attack": "pgd[steps=100]", "threat": "digits-linf[eps=8/255]"}


def is_variant(name: str) -> bool:
    """Whether a name has parameters in brackets.

    >>> is_variant("pgd[steps=100]"), is_variant("pgd")
    (True, False)
    """
    return "[" in name


def base_name(name: str) -> str:
    """The name without its parameters.

    >>> base_name("pgd[steps=100]"), base_name("pgd")
    ('pgd', 'pgd')
    """
    return name.partition("[")[0]


def variant_order(name: str) -> tuple[str, tuple[str | Fraction, ...], str]:
    """The sort key of a name: variants come after their entry, in the order of their numbers.

    >>> sorted(["pgd[eps=16/255]", "pgd-margin", "pgd[eps=2/255]", "pgd"], key=variant_order)
    ['pgd', 'pgd[eps=2/255]', 'pgd[eps=16/255]', 'pgd-margin']
    """
    parts = _NUMBER.split(name.removeprefix(base_name(name)))
    values = (Fraction(part) if place % 2 else part for place, part in enumerate(parts))
    return base_name(name), tuple(values), name


def split_variant(name: str, kind: str = "attack") -> tuple[str, dict[str, str]]:
    """The name of the entry and the values of its parameters, as text.

    Raises BenchError where the name is not of the form `entry[parameter=value,...]`.

    >>> split_variant("pgd[steps=100,rate=0.05]")
    ('pgd', {'steps': '100', 'rate': '0.05'})
    """
    found = _WRITTEN.fullmatch(name)
    pairs = [part.split("=", 1) for part in found["settings"].split(",")] if found else [[]]
    settings = {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
    if found is None or len(settings) != len(pairs):
        raise BenchError(
            f"the {kind} {name!r} cannot be read; write each parameter once, as in "
            f"{_EXAMPLES[kind]}."
        )
    return found["base"], settings


def variant_name(base: str, settings: Mapping[str, Any]) -> str:
    """The name of a variant.

    >>> variant_name("pgd", {"steps": 100, "random_start": False})
    'pgd[steps=100,random_start=false]'
    """
    written = (f"{name}={_text(value)}" for name, value in settings.items())
    return f"{base}[{','.join(written)}]"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
