"""Tests of bench.engine.cell_spec: order of items and selection of candidates."""

from __future__ import annotations

import torch

from bench.engine.cell_spec import Candidates, EndedRestarts, concatenate, select_rows
from bench.threats.threat_model import Goal
from plugins.attacks.pgd import PGD
from tests.engine.single_run import SingleRun


def test_items_with_the_largest_clean_margin_begin_first() -> None:
    spec = SingleRun(PGD()).spec()
    gap = spec.clean_logits.gather(1, spec.y[:, None])[:, 0] - spec.clean_logits.scatter(
        1, spec.y[:, None], -torch.inf
    ).amax(1)
    assert gap[torch.tensor(spec.largest_margin_first())].diff().le(0).all()
    targeted = SingleRun(PGD(), goal=Goal("targeted", "next")).spec()
    reached = targeted.clean_logits.argmax(1) == targeted.target
    assert not reached[torch.tensor(targeted.largest_margin_first())[: int((~reached).sum())]].any()


def test_clean_successes_cost_nothing() -> None:
    spec = SingleRun(PGD(), count=8).spec()
    found = Candidates.of_clean_images(spec, [5, 2])
    assert found.item.tolist() == [5, 2] and torch.equal(found.image, spec.x[[5, 2]])
    assert not torch.stack([found.forwards, found.gradients, found.final_checks, found.step]).any()


def test_parts_are_joined_in_order_and_rows_selected_by_number_or_mask() -> None:
    spec = SingleRun(PGD(), count=8).spec()
    parts = [Candidates.of_clean_images(spec, items) for items in ([5, 2], [7])]
    whole = concatenate(parts)
    assert whole.item.tolist() == [5, 2, 7]
    assert select_rows(whole, torch.tensor([2, 0])).item.tolist() == [7, 5]
    assert select_rows(whole, torch.tensor([True, False, True])).item.tolist() == [5, 7]


def test_the_nearer_of_last_iterate_and_earlier_success_is_reported() -> None:
    """Rows: no success; earlier only; last only; both, last nearer; both, earlier nearer."""
    earlier = torch.tensor([torch.inf, 2, torch.inf, 2, 2], dtype=torch.float64)
    count = torch.arange(5)
    images = torch.zeros(5, 1, 2, 2)
    rows = EndedRestarts(
        item=count, restart=count + 20, final=count > 9, image=images, forwards=count,
        gradients=count, step=count + 10, nearest_image=images + 1, nearest_distance=earlier,
        nearest_step=count, nearest_restart=count + 30,
    )  # fmt: skip
    won = torch.tensor([False, False, True, True, True])
    nearest = rows.nearest(won, torch.tensor([1, 1, 1, 1, 3], dtype=torch.float64))
    assert nearest.distance.tolist() == [torch.inf, 2, 1, 1, 2]
    assert nearest.step.tolist() == [-1, 1, 12, 13, 4]
    assert nearest.restart.tolist() == [-1, 31, 22, 23, 34]
    assert nearest.image[:, 0, 0, 0].tolist() == [0, 1, 0, 0, 1]
