"""Entries of strangers who err or mean harm: each is told in a sentence, nobody else is hurt."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.contract import check, runner
from bench.contract.check import Check
from bench.contract.runner import tried
from bench.core.errors import BenchError, UnavailableError
from bench.registry.registry import Registry
from bench.registry.submission import read_submission
from bench.sandbox import isolation
from bench.store import Store
from bench.submissions import templates
from bench.submissions.intake import take_in
from bench.training.defense_builder import NeedsTraining
from tests.fixtures.planted_plugins import ATTACK, CARD, entry


@pytest.fixture(autouse=True)
def no_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that do nothing are told apart by their files here, not by their contract."""
    monkeypatch.setattr(isolation, "why_unavailable", lambda: "there are no walls in this test")


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where entries lie."""
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    return tmp_path / "in"


def marked(loader: Path, name: str) -> Path:
    """An entry that leaves a file behind when a line of it is run; gives that file's path."""
    mark = loader.parent / f"{name} ran"
    entry(loader, name, f"open({str(mark)!r}, 'w').close()\n" + ATTACK.format(name=name))
    return mark


def test_checking_a_name_imports_no_entry_but_the_one_of_that_name(loader: Path) -> None:
    one, other = marked(loader, "one"), marked(loader, "other")
    assert runner.run_checks("digits-l2")[0].kind == "threat"
    with pytest.raises(BenchError, match=r"Did you mean 'digits-l2'\?.* one, other,"):
        runner.run_checks("digits-l22")
    assert not one.exists() and not other.exists()
    results = runner.run_checks("one")
    assert [r.check for r in results][:2] == ["card-is-in-order", "passes-the-door"]
    assert {r.name for r in results} == {"one"}
    assert one.exists() and not other.exists()


def card(name: str, **changes: str) -> str:
    """A card in order, but for these fields."""
    text = CARD.format(kind="attack", name=name)
    for field, value in changes.items():
        text = re.sub(rf"(?m)^{field} = .*$", f"{field} = {value}", text)
    return text


DEEP, LONG = "[" * 30_000, "9" * 5_000
CARDS = {
    "deep": ("a = " + DEEP, "is not TOML in UTF-8: RecursionError: maximum recursion depth"),
    "long": ("a = " + LONG, "is not TOML in UTF-8: Exceeds the limit (4300 digits)"),
    "hexadecimal": (card("hexadecimal", title="0x" + "f" * 60_000), "'title' came as a huge int:"),
    "dotted": (
        card("dotted").replace("title = ", "title." + ".".join("a" * 30_000) + " = "),
        "field 'title' came as a huge dict: Input should be a valid string.",
    ),
    "wordy": (
        card("wordy") + "".join(f"x{i} = 1\n" for i in range(4_000)),
        "; and 3990 more complaints.",
    ),
    "endless": (card("endless") + "x" * 50_000 + " = 1", "xxx…' is unknown."),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_chokes_its_reader_is_told_alone(loader: Path, name: str) -> None:
    text, sentence = CARDS[name]
    (entry(loader, name, "") / "card.toml").write_text(text)
    entry(loader, "good", ATTACK.format(name="good"))
    found = Registry.load()
    assert list(found.entries) == ["good"]
    (problem,) = found.problems
    assert problem.startswith(f"card.toml of {name!r}") and sentence in problem
    assert problem.endswith(".") and len(problem) < 3_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


TAUGHT = """
def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def loss(lesson):
    return nn.functional.cross_entropy(lesson.model(lesson.x), lesson.y, reduction="none")

class Torn(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        {forward}

@hookimpl
def bench_defenses():
    build = lambda loader: Torn(loader.trained(net(loader.shape, loader.classes)))
    yield Defense("taught", build, recipe=Recipe(net, loss, epochs=3, rate=1e-2), {more})
"""


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [("return self.inner(images)", ""), ("return self.inner(images)[:1]", "checks of 'taught' f")],
)
def test_an_entry_is_checked_with_weights_that_are_made_for_it(
    loader: Path, store: Store, monkeypatch: pytest.MonkeyPatch, forward: str, sentence: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(loader.parent / "cache"))
    text = TAUGHT.format(forward=forward, more="quick=True")
    place = entry(loader.parent / "work", "taught", text, kind="defense")
    if not sentence:
        assert take_in(place, store, allow_unsandboxed=True).checked
        return
    with pytest.raises(BenchError, match=sentence):
        take_in(place, store, allow_unsandboxed=True)


def test_weights_that_are_still_missing_are_a_finding_once_they_were_to_be_made() -> None:
    def lost(subject: object) -> str:
        raise NeedsTraining("0" * 64, "lost", "digits")

    def outcome(*, made: bool) -> check.CheckOutcome:
        return tried("attack", "lost", Check(lost), None, made=made).outcome

    assert outcome(made=False) is check.CheckOutcome.NOT_APPLICABLE
    assert outcome(made=True) is check.CheckOutcome.FAIL


def test_what_no_law_could_be_held_against_is_not_called_checked(
    loader: Path, store: Store
) -> None:
    text = TAUGHT.format(forward="return self.inner(images)", more="datasets=('fashion-mnist',)")
    place = entry(loader.parent / "work", "taught", text, kind="defense")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_DATA", str(loader.parent / "nothing"))
        assert not take_in(place, store, allow_unsandboxed=True).checked


OFFERS = {
    "nothing": ("@hookimpl\ndef bench_attacks():\n    return []\n", "yield it there"),
    "absent": (
        "@hookimpl\ndef bench_attacks():\n    yield MissingLibrary('absent', 'foolbox')\n",
        "the attack 'absent' needs foolbox, which is not installed",
    ),
}


@pytest.mark.parametrize("name", OFFERS)
def test_an_entry_that_offers_nothing_fails_at_the_door(
    loader: Path, store: Store, name: str
) -> None:
    text, sentence = OFFERS[name]
    place = entry(loader.parent / "work", name, text)
    last = runner.run_checks(place)[-1]
    assert (last.check, last.outcome) == ("passes-the-door", check.CheckOutcome.FAIL)
    assert sentence in last.sentence
    with pytest.raises(BenchError, match=r"1 checks of .* fail\. passes-the-door: "):
        take_in(place, store, allow_unsandboxed=True)


def packed(path: Path, name: str = "mine/plugin.py", how: int = zipfile.ZIP_LZMA) -> bytes:
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr(name, b"x = 1\n" * 99)
    return path.read_bytes()


def corrupt(path: Path) -> bytes:
    content = bytearray(packed(path))
    content[48:54] = b"\xff" * 6  # the properties of the compression, and its first byte
    return bytes(content)


def mislabelled(path: Path) -> bytes:
    content = bytearray(packed(path, "mine/é.py").replace("é".encode(), b"\xff\xfe"))
    return bytes(content)


ZIPS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "corrupt": (corrupt, "mine.zip is no zip file that can be read: "),
    "mislabelled": (mislabelled, "mine.zip is no zip file that can be read: "),
    "escaping": (lambda path: packed(path, "\x1b[31mred/plugin.py"), "no plain relative name"),
    "belling": (lambda path: packed(path, "red\x07/plugin.py"), "no plain relative name"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_hostile_zip_is_refused_in_a_sentence(loader: Path, store: Store, name: str) -> None:
    make, sentence = ZIPS[name]
    path = loader.parent / "mine.zip"
    path.write_bytes(make(path))
    with pytest.raises(BenchError, match=re.escape(sentence)) as caught:
        take_in(path, store)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("code", ["-" * 100_000 + "1", "x=" + "a." * 50_000 + "a"])
def test_code_that_chokes_its_reader_is_refused_in_a_sentence(
    loader: Path, store: Store, code: str
) -> None:
    place = entry(loader.parent / "work", "mine", ATTACK.format(name="mine"))
    (place / "plugin.py").write_text(code)
    with pytest.raises(BenchError, match=r"plugin.py of 'mine' is no Python: \w+Error"):
        take_in(place, store)


@pytest.mark.parametrize("where", ["file", "file/in", "/proc/q"])
def test_a_folder_of_entries_that_cannot_be_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store, where: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    place = entry(tmp_path / "work", "mine", ATTACK.format(name="mine"))
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / where))
    with pytest.raises(UnavailableError, match="BENCH_SUBMISSIONS") as caught:
        take_in(place, store)
    assert where in str(caught.value)
    assert Registry.load().entries == {}


@pytest.mark.parametrize("where", ["file", "/proc"])
def test_a_plugin_is_not_written_where_no_folder_can_be(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UnavailableError, match="choose another --folder"):
        templates.write_template("attack", "x1", tmp_path / where)


def test_an_entry_that_cannot_be_read_is_refused_in_a_sentence(
    loader: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = entry(loader.parent / "work", "mine", ATTACK.format(name="mine"))

    def shut(*names: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "card.toml")

    monkeypatch.setattr("bench.submissions.intake.shutil.copyfile", shut)
    with pytest.raises(BenchError, match=r"cannot be read: .*Permission denied"):
        take_in(place, store)


def test_a_name_that_no_path_can_have_is_answered_as_any_other() -> None:
    with pytest.raises(BenchError, match="no plugin and no path is named 'aaa"):
        runner.run_checks("a" * 300)


def told(store: Store) -> dict[str, list[str]]:
    """Every submission's states."""
    return {entry.name: [step.state for step in entry.history] for entry in store.submissions()}


@pytest.mark.parametrize("kind", ["archive", "card", "code"])
def test_what_is_refused_takes_no_state_from_the_entry_that_stands(
    loader: Path, store: Store, kind: str
) -> None:
    place = entry(loader.parent / "work", "mine", ATTACK.format(name="mine"))
    take_in(place, store)
    store.submission("mine", "finished")
    match kind:
        case "archive":
            place = loader.parent / "mine.zip"
            place.write_bytes(b"no zip")
        case "card":
            (place / "card.toml").write_text("schema = [")
        case "code":
            (place / "plugin.py").write_text("def broken(:")
    with pytest.raises(BenchError):
        take_in(place, store)
    assert told(store) == {"mine": ["received", "queued", "finished"]}


def test_the_name_of_a_reviewed_entry_is_taken_and_the_entry_itself_is_not(
    loader: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = entry(loader.parent / "work", "shipped", ATTACK.format(name="shipped"))
    monkeypatch.setattr(
        "bench.registry.discovery.REVIEWED_SUBMISSIONS", {"shipped": read_submission(place).digest}
    )
    assert take_in(place, store).name == "shipped"
    with (place / "plugin.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(BenchError, match=r"'shipped' is reviewed .* choose another name"):
        take_in(place, store)
    assert told(store) == {"shipped": ["queued"]}


def test_a_refused_namesake_of_a_reviewed_entry_leaves_no_state(loader: Path, store: Store) -> None:
    place = entry(loader.parent / "work", "gaussian-noise", ATTACK.format(name="gaussian-noise"))
    with pytest.raises(BenchError, match="choose another name"):
        take_in(place, store)
    assert told(store) == {}
