"""`bench sweep` prints every variant and warns of those that are too weak."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.cli.variant_options import read_settings
from bench.core.errors import BenchError

COMMAND = [
    "sweep", "--threat", "digits-linf", "--defense", "linear", "--attack", "pgd",
    "--examples", "32", "--set", "steps=4,40", "--set", "rate=0.1",
]  # fmt: skip


def test_every_variant_is_printed_with_its_warnings() -> None:
    done = CliRunner().invoke(app, COMMAND)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["steps=4, rate=0.1", "steps=40, rate=0.1"]
    assert "steps=4, rate=0.1: the steps do not cross the set" in done.stderr
    assert "steps=4, rate=0.1: its last doubling gains over a point" in done.stderr
    assert "steps=40, rate=0.1:" not in done.stderr


def test_the_points_are_printed_as_json() -> None:
    done = CliRunner().invoke(app, [*COMMAND, "--json"])
    few, many = json.loads(done.stdout)["points"]
    assert (few["crosses"], many["crosses"]) == (False, True)
    assert (few["n"], few["parameters"]) == (32, {"steps": 4, "rate": 0.1})
    assert few["robust"] > many["robust"]


@pytest.mark.parametrize("text", ["steps", "steps=", "=1", "steps=1,,2"])
def test_settings_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(BenchError, match="write parameter=values: steps=10,20"):
        read_settings([text], "pgd")


def test_a_setting_may_name_the_attack_of_the_sweep() -> None:
    assert read_settings(["pgd.steps=4, 40"], "pgd") == read_settings(["steps=4,40"], "pgd")
    with pytest.raises(BenchError, match="sets parameters of pgd alone"):
        read_settings(["bim.steps=4"], "pgd")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps=a", "the parameter steps of pgd came as 'a'; it should be a valid integer"),
        ("steps=0", "pgd with {'steps': 0} has steps = 0; at least one is needed."),
        ("rate=nan", "the parameter rate of pgd came as 'nan'; it should be a finite number"),
        ("random_start=maybe", "it should be a valid boolean"),
    ],
)
def test_a_value_that_does_not_suit_its_parameter_is_refused(setting: str, message: str) -> None:
    done = CliRunner().invoke(app, [*COMMAND[:-4], "--set", setting])
    assert message in str(done.exception)
