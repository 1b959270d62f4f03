"""A threat model is declared completely or refused by name, and a claim is a share under one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.contract.check import CheckOutcome
from bench.contract.runner import check_registration
from bench.registry.registry import Registry
from tests.fixtures.planted_plugins import planted_plugin, planted_registry
from tests.plugins.datasets.test_image_folder import save

EXAMPLE = {
    "name": "'imagenet-linf'",
    "dataset": "'image-folder'",
    "ball": "Linf(Fraction(8, 255))",
    "access": "Access.GRADIENTS",
}
"""White-box, 8/255, ImageNet."""
MISSING = "one failed in bench_threat_models: TypeError: ThreatModel.__init__() missing 1 required "


def declared(folder: Path, fields: dict[str, str], claim: str = "") -> Registry:
    """This threat model; with a claim also a defense that makes it, and the built-in plugins."""
    threat = ", ".join(f"{name}={value}" for name, value in fields.items())
    text = f"@hookimpl\ndef bench_threat_models():\n    yield ThreatModel({threat})\n"
    if not claim:
        return planted_registry(folder, {"one": text})
    text += (
        "@hookimpl\ndef bench_defenses():\n    yield Defense('claiming', lambda loader: 0, "
        f"datasets=('image-folder',), claims=({claim},))\n"
    )
    registry = Registry.without_submissions()
    registry.add_plugins([planted_plugin(folder, "one", text)])
    return registry


def failed(registry: Registry, kind: str, name: str, check: str) -> str:
    """The sentence of a check; empty where it passes."""
    results = check_registration(registry, kind, registry.find(kind, name))
    (result,) = [found for found in results if found.check == check]
    return result.sentence if result.outcome is CheckOutcome.FAIL else ""


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", str(tmp_path / "images"))
    for label in ("a", "b"):
        save(tmp_path / "images" / label / "1.png", 200, (8, 8))


@pytest.mark.row("E07", "RP07")
def test_the_example_is_complete(tmp_path: Path) -> None:
    """White-box, 8/255, ImageNet, claim 85 %."""
    registry = declared(tmp_path, EXAMPLE, "Claim('imagenet-linf', 0.85)")
    assert registry.problems == []
    results = list(check_registration(registry, "threat", registry.threats["imagenet-linf"]))
    assert [r for r in results if r.outcome is CheckOutcome.FAIL] == []
    rules = registry.threats["imagenet-linf"].value.rules()
    assert (rules["access"], rules["set"]["eps"]) == ("gradients", "8/255")
    assert rules["goal"]["kind"] == "untargeted"
    assert failed(registry, "defense", "claiming", "claims-are-shares") == ""


@pytest.mark.row("E07")
@pytest.mark.parametrize("name", ["name", "dataset", "ball"])
def test_a_declaration_without_a_field_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    fields = {key: value for key, value in EXAMPLE.items() if key != name}
    registry = declared(tmp_path, fields)
    assert registry.problems == [f"{MISSING}positional argument: '{name}'."]
    assert "imagenet-linf" not in registry.threats


@pytest.mark.row("E07")
def test_access_that_is_not_declared_is_the_strongest(tmp_path: Path) -> None:
    fields = {key: value for key, value in EXAMPLE.items() if key != "access"}
    assert declared(tmp_path, fields).threats["imagenet-linf"].value.rules()["access"] == (
        "gradients"
    )


WRONG = [
    ("ball", "Linf()", "missing 1 required positional argument: 'eps'"),
    ("ball", "Linf(8 / 255)", "an exact fraction was expected: write Fraction(8, 255)"),
    ("ball", "8 / 255", "without 'name', which every perturbation set has"),
    ("access", "'white-box'", "it should be an instance of Access"),
    ("access", "None", "it should be an instance of Access"),
    ("dataset", "None", "it should be a valid string"),
    ("goal", "'untargeted'", "it should be an instance of Goal"),
    ("goal", "Goal('misclassify')", "goal is 'misclassify'; known goals: untargeted"),
    ("budget", "None", "it should be an instance of Budget"),
    ("claim", "0.85", "unexpected keyword argument 'claim'"),
]


@pytest.mark.row("E07")
@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_a_field_that_is_not_concrete_is_refused(
    tmp_path: Path, name: str, value: str, sentence: str
) -> None:
    registry = declared(tmp_path, {**EXAMPLE, name: value})
    (problem,) = registry.problems
    assert sentence in problem
    assert "imagenet-linf" not in registry.threats


@pytest.mark.row("E07", "RP07")
@pytest.mark.parametrize(
    ("claim", "check", "sentence"),
    [
        ("Claim('imagenet-linf', 85.0)", "claims-are-shares", "claimed at 85.0; a share is 0 to 1"),
        ("Claim('imagenet-linf', -0.1)", "claims-are-shares", "claimed at -0.1"),
        ("Claim('imagenet-l2', 0.85)", "names-are-known", "no threat named 'imagenet-l2'"),
        ("Claim('digits-linf', 0.85)", "names-are-known", "it claims digits-linf on digits"),
    ],
)
def test_a_claim_that_nothing_can_test_is_refused(
    tmp_path: Path, claim: str, check: str, sentence: str
) -> None:
    registry = declared(tmp_path, EXAMPLE, claim)
    assert sentence in failed(registry, "defense", "claiming", check)
