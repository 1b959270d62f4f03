"""Everything that a plugin author imports: contracts, losses, random numbers, `hookimpl`.

Contracts are protocols and records, so that a plugin needs no base class. A class with `name`,
`needs`, `steps`, `start` and `step` is an `Attack`; one with `name`, `needs` and `run` is an
`ExternalAttack`. A hook registers instances:

    from bench.plugin import hookimpl

    @hookimpl
    def bench_attacks():
        yield MyAttack()

By use: attacks `Attack`, `Problem`, `State`, `StopRule`, `Access`, `cross_entropy`, `margin`;
external attacks `ExternalAttack`, `ExternalProblem`, `Model`, `MissingLibrary`; attacks that fit
one point for all images `SharedAttack`, `SharedProblem`; defenses `Defense`,
`Loader`, `Claim`, `Randomness`, `straight_through`; training `Recipe`, `TrainingBatch`,
`InnerAttack`, `FreeTraining`; threat models `ThreatModel`, `LeaderboardProtocol`, `Linf`,
`L2`, `L1`, `L0`, `LpBall`, `PerceptualBall`, `ParametricSet`, `RotationTranslation`,
`ElasticField`, `Patch`, `RandomPatch`, `MaskedPattern`, `LinfDelta`, `L2Delta`, `Corruption`,
`Nuisance`, `Goal`, `Budget`;
data `Dataset`, `Images`, `Split`; evidence `Certifier`, `Diagnostic`, `Evidence`, `Finding`,
`Subject`, `AnswerWork`.
"""

from __future__ import annotations

from fractions import Fraction

import pluggy

from bench.core.batches import default_batch
from bench.core.cards import Claim
from bench.core.corruptions import CORRUPTION_ATTACKS, CORRUPTIONS, SEVERITIES
from bench.core.errors import require_type
from bench.core.protocols import LeaderboardProtocol
from bench.core.statistics import clopper_pearson
from bench.plugin.attack import (
    OPTIONAL_METHODS,
    Attack,
    Gradient,
    Jacobian,
    Problem,
    State,
    StopRule,
    Traits,
)
from bench.plugin.bpda import straight_through
from bench.plugin.certifier import Certifier
from bench.plugin.dataset import Dataset, Images, Split
from bench.plugin.defense import Defense, Loader, Randomness
from bench.plugin.diagnostic import AnswerWork, Diagnostic, Evidence, Finding, Subject
from bench.plugin.external import (
    EXTERNAL_BATCH,
    ExternalAttack,
    ExternalProblem,
    MissingLibrary,
    Model,
)
from bench.plugin.losses import Loss, cross_entropy, margin, margin_to, select_column
from bench.plugin.shared import SharedAttack, SharedProblem, is_shared
from bench.plugin.training import FreeTraining, InnerAttack, Recipe, TrainingBatch
from bench.threats.access import Access, Budget
from bench.threats.corruption import Corruption
from bench.threats.delta import L2Delta, LinfDelta
from bench.threats.elastic import ElasticField
from bench.threats.lp_ball import LpBall
from bench.threats.masked_pattern import MaskedPattern
from bench.threats.norms import L1, L2, Linf, PerturbationSet, per_row
from bench.threats.nuisance import Nuisance, print_and_scan
from bench.threats.parametric import ParametricSet, clamp_straight_through
from bench.threats.patch import Patch
from bench.threats.perceptual import PerceptualBall
from bench.threats.projections import project_l1
from bench.threats.random_numbers import (
    KeyedRandomNumbers,
    RandomNumbers,
    example_key,
    name_to_int64,
)
from bench.threats.random_patch import RandomPatch
from bench.threats.sparse import L0
from bench.threats.spatial import RotationTranslation
from bench.threats.threat_model import SHARED, Goal, ThreatModel

__all__ = [
    "CORRUPTIONS",
    "CORRUPTION_ATTACKS",
    "EXTERNAL_BATCH",
    "L0",
    "L1",
    "L2",
    "OPTIONAL_METHODS",
    "SEVERITIES",
    "SHARED",
    "Access",
    "AnswerWork",
    "Attack",
    "Budget",
    "Certifier",
    "Claim",
    "Corruption",
    "Dataset",
    "Defense",
    "Diagnostic",
    "ElasticField",
    "Evidence",
    "ExternalAttack",
    "ExternalProblem",
    "Finding",
    "Fraction",
    "FreeTraining",
    "Goal",
    "Gradient",
    "Images",
    "InnerAttack",
    "Jacobian",
    "KeyedRandomNumbers",
    "L2Delta",
    "LeaderboardProtocol",
    "Linf",
    "LinfDelta",
    "Loader",
    "Loss",
    "LpBall",
    "MaskedPattern",
    "MissingLibrary",
    "Model",
    "Nuisance",
    "ParametricSet",
    "Patch",
    "PerceptualBall",
    "PerturbationSet",
    "Problem",
    "RandomNumbers",
    "RandomPatch",
    "Randomness",
    "Recipe",
    "RotationTranslation",
    "SharedAttack",
    "SharedProblem",
    "Split",
    "State",
    "StopRule",
    "Subject",
    "ThreatModel",
    "TrainingBatch",
    "Traits",
    "clamp_straight_through",
    "clopper_pearson",
    "cross_entropy",
    "default_batch",
    "example_key",
    "hookimpl",
    "is_shared",
    "margin",
    "margin_to",
    "name_to_int64",
    "per_row",
    "print_and_scan",
    "project_l1",
    "require_type",
    "select_column",
    "straight_through",
]

hookimpl = pluggy.HookimplMarker("bench")
"""Marks a function of a plugin as the implementation of the hook of that name."""
