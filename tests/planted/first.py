"""The first list of cases, written before the thresholds of the checks were frozen."""

from __future__ import annotations

from tests.planted.cases import Case
from tests.planted.first_attacks import ATTACKS
from tests.planted.first_defenses import DISHONEST
from tests.planted.first_honest import HONEST

FIRST: tuple[Case, ...] = (*DISHONEST, *ATTACKS, *HONEST)
