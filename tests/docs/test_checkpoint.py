"""From a checkpoint to figures and a row: the tutorial on real images, beside pyautoattack."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import bench
from bench.data.datasets import first_examples
from bench.registry.registry import Registry
from tests.benchmarks.peer_attacks import autoattack, quiet
from tests.docs.pages import Block, blocks
from tests.docs.walk import Reader
from tests.fixtures.cifar_checkpoint import MEAN, STD, write_checkpoint

PAGE = "docs/tutorials/checkpoint.md"
EPS = 2 / 255
IMAGES = 10
ATTACKS = ("apgd-ce", "apgd-t")
"""The two of AutoAttack's four that decide here: the others break nothing that these leave."""
SMALLER = {
    '("cifar10", 1000)': f'("cifar10", {IMAGES})',
    'eps="2/255"': f'eps="2/255", attacks={list(ATTACKS)}',
}
"""What the script is run with: 5,000 queries one after the other cost a minute for one image, too.

The suite runs whole once, as the last of the commands, on the images that nothing broke before.
"""
COMMANDS = ("import", "submit", "run", "report")


def script() -> Block:
    (found,) = [block for block in blocks(PAGE) if block.file]
    return found


def commands() -> list[str]:
    """The commands of the last block, which bring the checkpoint onto a leaderboard."""
    return blocks(PAGE)[-1].commands


def test_the_way_is_five_lines_or_four_commands() -> None:
    lines = [line for line in script().text.splitlines() if line.strip()]
    assert len(lines) <= 5
    assert [command.split()[1] for command in commands()] == list(COMMANDS)
    for written in SMALLER:
        assert script().text.count(written) == 1


def autoattack_robust(model: nn.Module) -> int:
    """Images that AutoAttack leaves, by the labels of what it returns."""
    dataset = Registry.without_submissions().find("dataset", "cifar10").value
    examples = first_examples(dataset, IMAGES)
    x, y = examples.tensor(), torch.tensor(examples.labels)
    with quiet():
        adv = autoattack(*ATTACKS)(model, x, y, EPS, 0)
    assert float((adv - x).abs().max()) <= EPS + 1e-6
    with torch.no_grad():
        return int((model(adv).argmax(1) == y).sum())


@pytest.mark.slow
def test_a_checkpoint_gets_the_count_of_autoattack_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three counts are equal: one example of ten would be twenty of two hundred."""
    pytest.importorskip("pyautoattack", reason="the peer is an extra")
    write_checkpoint(tmp_path / "model.pth")
    reader = Reader(tmp_path, monkeypatch)
    model = bench.load_model("model.pth", "torchvision:resnet18", mean=MEAN, std=STD)
    peer = autoattack_robust(model)

    text = script().text
    for written, smaller in SMALLER.items():
        text = text.replace(written, smaller)
    (tmp_path / script().file).write_text(text)
    table = reader.run(f"python {script().file}")
    (worst,) = [line for line in table.splitlines() if "worst case" in line]
    ours = re.search(r"\((\d+)/(\d+)\)", worst)
    assert ours and [int(one) for one in ours.groups()] == [peer, IMAGES]

    imported, submitted, run, report = commands()
    for command in (imported, submitted, f"{run} --examples {IMAGES} --workers 1 --mode rank"):
        reader.run(command)
    document = json.loads(reader.run(f"{report} --mode rank --json"))
    (row,) = document["ranking"]
    assert row["robust"]["k"] == row["robust_ranked"]["k"] == peer
    assert 0.2 * row["clean"]["k"] <= peer <= 0.8 * row["clean"]["k"]
    assert row["suite"]["done"] == 4 and row["verdict"] == "sound"
    assert row["coverage"]["done"] == row["coverage"]["required"] and not row["provisional"]
    assert row["note"] == "Low n: with fewer than 500 examples nothing is ranked."
