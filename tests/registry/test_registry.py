"""Registration of plugins: what is accepted, what is refused, and with which message."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.core.cells import Cell
from bench.core.errors import BenchError
from bench.core.folders import submissions_folder
from bench.core.statistics import Count
from bench.registry import loader
from bench.registry.cards import attack_digest
from bench.registry.discovery import REVIEWED_SUBMISSIONS
from bench.registry.registry import Registry
from bench.registry.validation import why_invalid
from tests.fixtures.planted_plugins import ATTACK, planted_registry, write_submission


def attack(name: str) -> str:
    return ATTACK.format(name=name)


@pytest.fixture(scope="module")
def everything() -> Registry:
    return Registry.without_submissions()


def test_every_built_in_plugin_is_registered(everything: Registry) -> None:
    assert everything.problems == []
    assert "digits" in everything.datasets
    assert {attack.origin for attack in everything.attacks.values()} <= {"built-in", "entry-point"}


def test_every_kind_is_listed_by_name(everything: Registry) -> None:
    for table in (everything.attacks, everything.defenses, everything.threats):
        assert list(table) == sorted(table)
        assert all(name == registered.value.name for name, registered in table.items())


def test_plugins_are_sorted_by_name_in_any_order_of_registration(tmp_path: Path) -> None:
    found = planted_registry(tmp_path, {"one": attack("zeta"), "two": attack("alpha")})
    assert list(found.attacks) == ["alpha", "zeta"]


def test_an_unknown_name_is_reported_with_the_nearest_known_one(tmp_path: Path) -> None:
    found = planted_registry(tmp_path, {"one": attack("pgd"), "two": attack("square")})
    with pytest.raises(BenchError) as caught:
        found.find("attack", "pdg")
    expected = "no attack named 'pdg'. Did you mean 'pgd'? Known: pgd, square."
    assert str(caught.value) == expected


def test_an_unknown_kind_is_reported_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="Did you mean 'attack'"):
        planted_registry(tmp_path, {}).find("atack", "pgd")


BAD = {
    "unmarked": (
        "def bench_attacks():\n    return ()\n",
        "unmarked has bench_attacks without @hookimpl above it, so it is never called; add ",
    ),
    "empty": ("x = 1\n", "empty has no function marked @hookimpl, so it registers nothing."),
    "misspelt": (
        "@hookimpl\ndef bench_atacks():\n    return ()\n",
        "misspelt implements 'bench_atacks', which is not a hook. Did you mean 'bench_attacks'?",
    ),
    "greedy": (
        "@hookimpl\ndef bench_attacks(device):\n    return ()\n",
        "greedy was refused: PluginValidationError: Plugin 'greedy' for hook 'bench_attacks'",
    ),
    "wrapper": (
        "@hookimpl(wrapper=True)\ndef bench_attacks():\n    return (yield)\n",
        "wrapper wraps bench_attacks, which could change other plugins; implement it without ",
    ),
    "typed": (
        "@hookimpl\ndef bench_defenses():\n    yield nn.Flatten()\n",
        "typed: its defense is Flatten(start_dim=1, end_dim=-1), not a Defense.",
    ),
    "uninstantiated": (
        attack("x").replace("yield Nudge()", "yield Nudge"),
        "uninstantiated: its attack is the class Nudge; register an instance: Nudge().",
    ),
    "stepless": (
        attack("x").replace("steps = 1", "steps = 1.5"),
        "stepless: its attack has steps = 1.5; it should be a valid integer.",
    ),
    "motionless": (
        attack("x").replace("steps = 1", "steps = 0"),
        "motionless: its attack has steps = 0; at least one is needed.",
    ),
    "endless": (
        attack("x").replace("steps = 1", "steps = 10**6 + 1"),
        "endless: its attack has steps = 1000001; at most 1000000 are allowed.",
    ),
    "headless": (
        attack("x").replace("def start", "def begin"),
        "without 'start', which every attack has.",
    ),
    "nameless": (
        attack("Bad Name"),
        "nameless: its attack has the name 'Bad Name'; names are",
    ),
    "raising": (
        "@hookimpl\ndef bench_attacks():\n    yield 1 / 0\n",
        "raising failed in bench_attacks: ZeroDivisionError: division by zero.",
    ),
    "leaving": (
        "@hookimpl\ndef bench_attacks():\n    raise SystemExit(0)\n    yield\n",
        "leaving failed in bench_attacks: SystemExit: 0.",
    ),
    "unreadable": (
        attack("x").replace(
            "    steps = 1", "    @property\n    def steps(self):\n        raise OSError('no')"
        ),
        "unreadable: its attack cannot be checked: OSError: no.",
    ),
    "indigestible": (
        attack("x").replace("class", "@dataclass\nclass").replace(
            "    steps", "    f: object = lambda: 0\n    steps"
        ),
        "indigestible: its attack has a parameter without a digest: x.f is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plugin_gets_one_sentence_and_the_good_one_stays(tmp_path: Path, name: str) -> None:
    text, sentence = BAD[name]
    found = planted_registry(tmp_path, {name: text, "good": attack("pgd")})
    assert len(found.problems) == 1
    assert sentence in found.problems[0]
    assert found.problems[0].endswith(".")
    assert list(found.attacks) == ["pgd"]


def test_a_plugin_that_fails_validation_is_unregistered(tmp_path: Path) -> None:
    found = planted_registry(tmp_path, {"greedy": BAD["greedy"][0], "good": attack("pgd")})
    assert [name for name, _ in found.manager.list_name_plugin()] == ["good"]


def test_of_two_plugins_with_one_name_the_first_is_used_and_both_are_named(tmp_path: Path) -> None:
    found = planted_registry(tmp_path, {"one": attack("pgd"), "two": attack("pgd")})
    assert found.problems == [
        "two plugins register the attack 'pgd': one and two. Rename one; the first one is used."
    ]
    assert found.attacks["pgd"].module == "one"


def test_a_plugin_with_two_entry_points_is_registered_once(site: Path) -> None:
    text = "from bench.plugin import *\n" + attack("installed-fast")
    install(site, "fast = installed_fast\nfaster = installed_fast", "installed_fast", text)
    found = Registry.without_submissions()
    assert found.problems == ["installed_fast is registered twice; the first one is used."]
    assert found.attacks["installed-fast"].module == "installed_fast"
    assert found.manager.has_plugin("installed_fast")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_submission_that_fails_to_import_affects_no_other(
    tmp_path: Path, text: str, sentence: str
) -> None:
    write_submission(tmp_path, "bad", text)
    write_submission(tmp_path, "good", attack("good"))
    found = Registry.load(tmp_path, allow_unsandboxed=True)
    assert any(f"submission bad could not be imported: {sentence}" in p for p in found.problems)
    assert found.attacks["good"].origin == "submission"


def test_a_submission_is_listed_without_importing_its_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    write_submission(
        tmp_path / "in", "quiet", f"open({str(mark)!r}, 'w').close()\n" + attack("quiet")
    )
    found = Registry.load(tmp_path / "in")
    assert "quiet" in found.submissions
    assert [c.name for c in found.cards() if c.origin == "submission"] == ["quiet"]
    assert not mark.exists()
    with pytest.raises(BenchError, match="--allow-unsandboxed"):
        found.find("attack", "quiet")


def test_a_submission_is_imported_with_the_flag_and_keeps_its_folder(tmp_path: Path) -> None:
    place = write_submission(tmp_path, "loud", attack("loud"))
    loud = Registry.load(tmp_path, allow_unsandboxed=True).find("attack", "loud")
    assert (loud.origin, loud.folder) == ("submission", place)
    assert loud.source == hashlib.sha256((place / "plugin.py").read_bytes()).hexdigest()


def test_a_reviewed_submission_is_imported_only_while_its_files_match_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_submission(tmp_path, "shipped", attack("shipped"))
    digest = Registry.load(tmp_path).submissions["shipped"].digest
    monkeypatch.setattr("bench.registry.discovery.REVIEWED_SUBMISSIONS", {"shipped": digest})
    assert "shipped" in Registry.load(tmp_path).attacks
    with (place / "plugin.py").open("a") as file:
        file.write("\n")
    assert "shipped" not in Registry.load(tmp_path).attacks


def test_no_byte_code_is_written_beside_a_submission(tmp_path: Path) -> None:
    place = write_submission(tmp_path, "cached", attack("cached"))
    Registry.load(tmp_path, allow_unsandboxed=True)
    assert sorted(path.name for path in place.iterdir()) == ["card.toml", "plugin.py"]


def test_a_submission_registers_only_what_its_card_names(tmp_path: Path) -> None:
    write_submission(tmp_path, "humble", attack("another"))
    found = Registry.load(tmp_path, allow_unsandboxed=True)
    assert "another" not in found.attacks
    assert any("its card names the attack 'humble'" in problem for problem in found.problems)


def test_a_submission_cannot_take_a_built_in_name(tmp_path: Path) -> None:
    name = "undefended"
    write_submission(tmp_path, name, "raise RuntimeError", kind="defense")
    found = Registry.load(tmp_path)
    if name not in found.defenses:
        pytest.skip("the built-in defenses are not there")
    assert found.defenses[name].origin == "built-in"
    assert name not in found.submissions
    assert any(f"submission {name}. Rename one" in problem for problem in found.problems)


def test_the_submissions_folder_can_be_set_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BENCH_SUBMISSIONS", raising=False)
    assert submissions_folder() == Path("submissions")
    monkeypatch.setenv("BENCH_SUBMISSIONS", "/elsewhere")
    assert submissions_folder() == Path("/elsewhere")


def test_submissions_that_ship_with_the_project_match_their_digests() -> None:
    found = Registry.load(Path(__file__).parents[2] / "submissions")
    assert {name: found.submissions[name].digest for name in REVIEWED_SUBMISSIONS} == dict(
        REVIEWED_SUBMISSIONS
    )
    assert all(found.find(found.submissions[name].card.kind, name) for name in REVIEWED_SUBMISSIONS)


def install(folder: Path, point: str, module: str, text: str) -> None:
    """A package as a package manager leaves it: a module and its metadata."""
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bench]\n{point}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("installed_"):
            del sys.modules[name]


def test_an_installed_package_is_found_by_its_entry_point(site: Path) -> None:
    install(site, "fast = installed_fast", "installed_fast",
            "from bench.plugin import *\n" + attack("installed-fast"))  # fmt: skip
    fast = Registry.without_submissions().find("attack", "installed-fast")
    assert (fast.origin, fast.module) == ("entry-point", "installed_fast")


@pytest.mark.parametrize(
    ("point", "sentence"),
    [
        ("x = installed_gone", "No module named 'installed_gone'"),
        ("x = installed_here:bench_attacks", "which is not a module"),
        ("x = plugins.datasets.digits", "which is built in"),
    ],
)
def test_an_entry_point_without_a_plugin_module_is_reported(
    site: Path, point: str, sentence: str
) -> None:
    install(site, point, "installed_here", "def bench_attacks():\n    return ()\n")
    problems = Registry.without_submissions().problems
    assert any("entry point 'x' could not be imported" in p and sentence in p for p in problems)


def test_an_exception_in_one_cell_judged_hook_does_not_stop_the_others(tmp_path: Path) -> None:
    raising = "@hookimpl\ndef bench_cell_judged(cell):\n    raise OSError('disk')\n"
    listening = (
        "received = []\n@hookimpl\n"
        "def bench_cell_judged(cell, robust):\n    received.append(robust)\n"
    )
    found = planted_registry(tmp_path, {"listening": listening, "raising": raising})
    cell = Cell("t", "d", "a", "", "", "", "", 1)
    found.notify_cell_judged(cell, Count(1, 2, 0.1, 0.9))
    assert found.problems == ["raising failed in bench_cell_judged: OSError: disk."]
    listener = found.manager.get_plugin("listening")
    assert listener is not None
    assert listener.received == [Count(1, 2, 0.1, 0.9)]


def test_an_attack_digest_depends_on_source_and_parameters(tmp_path: Path) -> None:
    body = "@dataclass(frozen=True)\nclass Nudge:\n    rate: float = 0.5\n"
    text = attack("pgd").replace("class Nudge:\n", body)
    one = planted_registry(tmp_path, {"one": text}).attacks["pgd"]
    two = planted_registry(tmp_path, {"one": text.replace("0.5", "0.25")}).attacks["pgd"]
    assert attack_digest(one) != attack_digest(two)
    assert attack_digest(one) == attack_digest(
        planted_registry(tmp_path, {"one": text}).attacks["pgd"]
    )


def test_a_set_whose_parameter_has_no_digest_is_refused(tmp_path: Path) -> None:
    text = """
@dataclass(frozen=True)
class Patch(Linf):
    inside: object = lambda x: x

@hookimpl
def bench_threat_models():
    yield ThreatModel("patch", "digits", Patch(Fraction(1)))
"""
    found = planted_registry(tmp_path, {"one": text})
    assert found.threats == {}
    assert found.problems[0].startswith(
        "one: its threat has a parameter without a digest: Linf.inside is <function"
    )


def test_a_plugin_module_has_the_digest_of_its_file(everything: Registry) -> None:
    digits = everything.datasets["digits"]
    assert len(digits.source) == 64
    assert why_invalid("dataset", digits.value) == ""


def test_modules_with_a_leading_underscore_are_not_plugins() -> None:
    import plugins

    assert all("._" not in name for name in loader.plugin_modules(plugins))
