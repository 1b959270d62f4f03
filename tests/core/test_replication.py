"""Two evaluations of a cell: which items differ, and by which margins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.core.errors import BenchError
from bench.core.outcomes import OUTCOME_DTYPES, Outcomes, Verdict
from bench.core.replication import changed_otherwise, differences, judged_margins


def outcomes(**columns: list[float]) -> Outcomes:
    """Outcomes [n] with these columns; the others are zero."""
    n = len(columns["verdict"])
    made = Outcomes._make(np.zeros(n, kind) for kind in OUTCOME_DTYPES)
    columns.setdefault("item", list(range(n)))
    kinds = dict(zip(Outcomes._fields, OUTCOME_DTYPES, strict=True))
    return made._replace(**{name: np.array(v, kinds[name]) for name, v in columns.items()})


def judged(logits: list[float], true: int, verdict: Verdict) -> Outcomes:
    """The outcome of one item whose referee's model gives these logits."""
    values = np.array(logits, np.float64)
    p = np.exp(values) / np.exp(values).sum()
    label = int(p.argmax())
    return outcomes(
        verdict=[verdict],
        label=[label],
        confidence=[p[label]],
        true_confidence=[p[true]],
        true_rank=[int((values > values[true]).sum())],
        loss=[-math.log(p[true])],
    )


def test_the_margin_of_a_wrong_prediction_is_the_difference_of_logits() -> None:
    assert judged_margins(judged([1.0, 3.5, 0.2], 0, Verdict.BROKEN))[0] == pytest.approx(
        2.5, abs=1e-5
    )
    assert judged_margins(judged([1.0, 1.001, 0.2], 0, Verdict.BROKEN))[0] == pytest.approx(
        1e-3, abs=1e-6
    )


def test_the_margin_of_a_right_prediction_is_an_upper_bound() -> None:
    (two,) = judged_margins(judged([3.0, 1.0], 0, Verdict.ROBUST))
    assert two == pytest.approx(-2.0, abs=1e-5), "exact with two classes"
    (three,) = judged_margins(judged([3.0, 1.0, 1.0], 0, Verdict.ROBUST))
    assert -2.0 < three < -1.0


def test_a_refused_candidate_has_no_margin() -> None:
    refused = outcomes(verdict=[Verdict.OUT_OF_BALL], true_rank=[-1], loss=[math.nan])
    (found,) = differences(judged([1.0, 3.0], 0, Verdict.BROKEN), refused)
    assert found.second.margin is None
    assert found.sentence == ("item 0: broken (class 1, margin 2) at first, now out of ball.")


def test_only_items_whose_verdict_differs_are_named() -> None:
    first = outcomes(verdict=[0, 1, 0, 1], label=[5, 6, 7, 8], distance=[0.1, 0.2, 0.3, 0.4])
    second = outcomes(verdict=[0, 0, 0, 1], label=[5, 6, 7, 8], distance=[0.1, 0.5, 0.3, 0.6])
    (found,) = differences(first, second)
    assert (found.item, found.first.verdict, found.second.verdict) == (1, "broken", "robust")
    assert (found.first.distance, found.second.distance) == (0.2, 0.5)
    assert changed_otherwise(first, second) == 1, "item 3; item 1 has another verdict"
    assert differences(first, first) == [] and changed_otherwise(first, first) == 0


def test_values_that_are_not_recorded_are_equal() -> None:
    empty = outcomes(verdict=[0, 0], loss=[math.nan, math.nan], rejection=[-math.inf, -math.inf])
    again = outcomes(verdict=[0, 0], loss=[math.nan, math.nan], rejection=[-math.inf, -math.inf])
    assert changed_otherwise(empty, again) == 0
    assert changed_otherwise(empty, again._replace(loss=np.zeros(2, np.float32))) == 2


def test_evaluations_of_other_items_cannot_be_compared() -> None:
    with pytest.raises(BenchError, match="3 outcomes, which are not of the 2 items"):
        differences(outcomes(verdict=[0, 0]), outcomes(verdict=[0, 0, 0]))
    with pytest.raises(BenchError, match="not of the 2 items"):
        differences(outcomes(verdict=[0, 0]), outcomes(verdict=[0, 0], item=[0, 2]))
