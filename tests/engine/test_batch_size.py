"""Tests of bench.engine.batch_size: smaller batches only where they give the same bits."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from bench.engine.batch_size import KNOWN
from bench.engine.problem import BATCH_UNIT
from bench.engine.runner import run_attack
from bench.threats.norms import Linf
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_margin import MarginPGD
from tests.engine.single_run import CountingModel, NoisyModel, SingleRun, assert_same


class BatchDependentModel(CountingModel):
    """Changes the last bit of its logits in batches smaller than a unit."""

    def forward(self, images: Tensor) -> Tensor:
        few = len(images) < BATCH_UNIT
        return super().forward(images) * (1 + 2**-20 if few else 1)


def test_the_last_items_run_in_smaller_batches() -> None:
    single = SingleRun(PGD(steps=40), model=CountingModel())
    spec = single.spec(128)
    module = spec.model_access.module
    assert isinstance(module, CountingModel)
    rows, spent = list[int](), 0
    for _ in range(2):
        module.rows.clear()
        spent = sum(
            int(part.gradients.sum()) for part in run_attack(spec, single.referee(spec).confirm)
        )
        assert min(module.rows) < BATCH_UNIT
        rows.append(sum(module.rows))
    known = KNOWN[module]
    tested = sum(few for few, _ in known.exact) + sum(unit for unit, _ in known.probes)
    assert rows[0] <= rows[1] + 2 * tested  # the self-tests have run by then
    # Where 8 rows change bits on this processor, the last items run in batches of 16.
    assert rows[1] < (1.4 if all(known.exact.values()) else 1.6) * spent


def test_batches_stay_whole_units_where_small_ones_change_bits() -> None:
    single = SingleRun(PGD(steps=40), model=BatchDependentModel())
    spec = single.spec(128)
    module = spec.model_access.module
    assert isinstance(module, BatchDependentModel)
    module.rows.clear()
    list(run_attack(spec, single.referee(spec).confirm))
    small = [rows for rows in module.rows if rows < BATCH_UNIT]
    assert 0 < len(small) <= 2  # the self-test itself, for 8 and for 16 rows
    assert_same(single.run(128), single.run(32))


def test_the_batch_of_a_noise_group_shrinks_as_its_items_are_broken() -> None:
    ball = Linf(Fraction(1, 8))
    single = SingleRun(
        MarginPGD(steps=20), ball, model=NoisyModel(0.02), random=True, count=BATCH_UNIT * 2
    )
    spec, sizes = single.spec(), list[int]()
    spec.model_access.module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    (part,) = run_attack(spec, single.referee(spec).confirm)
    left = int((part.step < 0).sum())
    assert 0 < left < BATCH_UNIT and sizes[0] == BATCH_UNIT * 2
    assert min(sizes) == -(-left // 8) * 8
    assert sum(sizes) < 0.7 * len(sizes) * BATCH_UNIT * 2
