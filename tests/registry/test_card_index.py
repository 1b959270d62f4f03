"""The card index: lists without torch, rebuilt at every change, never trusted where damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.core.cards import AttackCard, Card, card_record
from bench.core.hashing import canonical
from bench.registry import card_index
from bench.registry.card_index import ListedCards, index_path, indexed_cards
from bench.registry.registry import Registry

ROOT = Path(__file__).parents[2]
BLOCK_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocker())
"""
RUN = "import sys; sys.argv = ['bench', *{}]\nfrom bench.cli import main\nmain()"
COMMANDS = [
    ["list", "attacks"], ["list", "attacks", "--json"], ["show", "pgd"], ["show", "pgd", "--json"],
    ["list", "defenses"], ["list", "threats"], ["show", "gaussian-noise"],
]  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source that no other process changes meanwhile."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("bench", "plugins", "submissions"):
        # Without byte code: Python would run it in place of a source of the same size and time.
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def bench(command: list[str], root: Path, cache: Path, *, torch: bool = False) -> str:
    """Standard output of a command run in the source folder `root`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONSAFEPATH"] = ""  # the source is in `root`
    program = ("" if torch else BLOCK_TORCH) + RUN.format(command)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_warm_index_serves_every_list_without_torch(checkout: Path, tmp_path: Path) -> None:
    cold = bench(COMMANDS[0], checkout, tmp_path, torch=True)
    assert "pgd" in cold
    assert bench(COMMANDS[0], checkout, tmp_path) == cold
    for command in COMMANDS[1:]:
        warm = bench(command, checkout, tmp_path)
        assert warm
        if "--json" in command:
            assert json.loads(warm)["items"]


def test_show_prints_the_same_with_a_cold_and_a_warm_index(checkout: Path, tmp_path: Path) -> None:
    cold = bench(["show", "pgd"], checkout, tmp_path, torch=True)
    assert bench(["show", "pgd"], checkout, tmp_path) == cold


def test_a_changed_plugin_file_is_seen_at_once(checkout: Path, tmp_path: Path) -> None:
    before = bench(["list", "attacks"], checkout, tmp_path, torch=True)
    source = checkout / "plugins" / "attacks" / "fgsm_targeted.py"
    content, status = source.read_bytes(), source.stat()
    source.write_bytes(content.replace(b'"fgsm-targeted"', b'"fgsn-targeted"'))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same size and time
    after = bench(["list", "attacks"], checkout, tmp_path, torch=True)
    source.write_bytes(content)
    assert "fgsn-targeted" not in before
    assert "fgsn-targeted" in after


class CountedLoad:
    """A loader of cards that counts its calls."""

    def __init__(self, *cards: Card) -> None:
        self.calls = 0
        self.found = ListedCards(cards or (AttackCard(name="pgd", origin="built-in"),), ("x.",))

    def __call__(self) -> ListedCards:
        self.calls += 1
        return self.found


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountedLoad:
    """A counted loader, in an empty cache folder and an empty submissions folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    monkeypatch.delenv("BENCH_IMAGE_FOLDER", raising=False)
    return CountedLoad()


def test_the_registry_is_loaded_once(load: CountedLoad) -> None:
    assert indexed_cards(load) == indexed_cards(load) == load.found
    assert load.calls == 1


def test_every_card_is_read_back_as_it_was_written(load: CountedLoad) -> None:
    registry = Registry.load()
    load.found = ListedCards(tuple(registry.cards()), tuple(registry.problems))
    first, second = indexed_cards(load), indexed_cards(load)
    assert load.calls == 1
    assert first == second
    assert [type(card) for card in second.cards] == [type(card) for card in load.found.cards]
    assert [canonical(card_record(card)) for card in second.cards] == [
        canonical(card_record(card)) for card in load.found.cards
    ]


def _damage(content: bytes) -> bytes:
    return content.replace(b'"pgd"', b'"pgx"')


@pytest.mark.parametrize(
    "damage",
    [
        _damage, lambda content: content[:-20], lambda content: b"", lambda content: b"[]",
        lambda content: b"\xff\xfe", lambda content: b"[" * 100_000,
        lambda content: content.replace(b'"digest":"', b'"digest":"0', 1),
    ],
)  # fmt: skip
def test_a_damaged_index_is_rebuilt(load: CountedLoad, damage: Callable[[bytes], bytes]) -> None:
    indexed_cards(load)
    path = index_path()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert indexed_cards(load) == load.found
    assert load.calls == 2
    assert path.read_bytes() == whole


def test_a_new_or_changed_submission_file_rebuilds_the_index(
    load: CountedLoad, tmp_path: Path
) -> None:
    indexed_cards(load)
    card = tmp_path / "in" / "mine" / "card.toml"
    card.parent.mkdir(parents=True)
    for text in ("one", "two"):
        card.write_text(text)
        indexed_cards(load)
    assert load.calls == 3
    indexed_cards(load)
    assert load.calls == 3


def test_an_installed_library_rebuilds_the_index(
    load: CountedLoad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    indexed_cards(load)
    (tmp_path / "somelibrary-1.0.dist-info").mkdir()
    indexed_cards(load)
    (tmp_path / "somelibrary-1.0.dist-info").rename(tmp_path / "somelibrary-1.1.dist-info")
    indexed_cards(load)
    assert load.calls == 3


def test_a_plugin_package_with_an_entry_point_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "strangeattacks"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "plugin.py").write_text("x = 1")
    about = tmp_path / "strangeattacks-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: strangeattacks\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[bench]\nstrange = strangeattacks.plugin\n")
    before = card_index.index_key()
    monkeypatch.syspath_prepend(str(tmp_path))
    installed = card_index.index_key()
    (package / "plugin.py").write_text("x = 2")
    assert len({before, installed, card_index.index_key()}) == 3


def test_a_file_that_changes_while_the_registry_loads_leaves_no_index(
    load: CountedLoad, tmp_path: Path
) -> None:
    def changing() -> ListedCards:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "new").write_text("")
        return load()

    indexed_cards(changing)
    assert not index_path().exists()


def test_cards_of_external_images_are_not_cached(
    load: CountedLoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", "somewhere")
    assert indexed_cards(load) is load.found
    assert not index_path().exists()


def test_a_cache_folder_that_cannot_be_written_to_is_no_error(
    load: CountedLoad, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert indexed_cards(load) == load.found
