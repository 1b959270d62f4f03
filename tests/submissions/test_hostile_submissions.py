"""Faulty and hostile submissions: each is refused with a message and affects no other."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.contract import check, runner
from bench.contract.check import Check
from bench.contract.runner import run_check
from bench.core.errors import BenchError, UnavailableError
from bench.registry.registry import Registry
from bench.registry.submission import read_submission
from bench.sandbox import isolation
from bench.store import Store
from bench.submissions import templates
from bench.submissions.intake import accept_submission
from bench.training.defense_builder import NeedsTraining
from tests.fixtures.planted_plugins import ATTACK, CARD, write_submission


@pytest.fixture(autouse=True)
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a sandbox: submissions are checked by their files alone."""
    monkeypatch.setattr(isolation, "why_unavailable", lambda: "this test has no sandbox")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The submissions folder."""
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    return tmp_path / "in"


def write_marking_submission(folder: Path, name: str) -> Path:
    """Write a submission that creates a file when its code is run; returns that file's path."""
    mark = folder.parent / f"{name} ran"
    write_submission(folder, name, f"open({str(mark)!r}, 'w').close()\n" + ATTACK.format(name=name))
    return mark


def test_checking_a_name_imports_only_the_submission_of_that_name(folder: Path) -> None:
    one, other = write_marking_submission(folder, "one"), write_marking_submission(folder, "other")
    assert runner.run_checks("digits-l2")[0].kind == "threat"
    with pytest.raises(BenchError, match=r"Did you mean 'digits-l2'\?.* one, .*other,"):
        runner.run_checks("digits-l22")
    assert not one.exists() and not other.exists()
    runner.run_checks("one")
    assert not one.exists() and not other.exists()
    results = runner.run_checks("one", sandbox_waiting=False)
    assert [r.check for r in results][:2] == ["card-is-in-order", "is-registered"]
    assert {r.name for r in results} == {"one"}
    assert one.exists() and not other.exists()


def card(name: str, **changes: str) -> str:
    """A valid card, with these fields changed."""
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
        "; and 3990 more faults.",
    ),
    "endless": (card("endless") + "x" * 50_000 + " = 1", "xxx…' is unknown."),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_hostile_card_is_reported_and_affects_no_other_submission(
    folder: Path, name: str
) -> None:
    text, sentence = CARDS[name]
    (write_submission(folder, name, "") / "card.toml").write_text(text)
    write_submission(folder, "good", ATTACK.format(name="good"))
    found = Registry.load()
    assert list(found.submissions) == ["good"]
    (problem,) = found.problems
    assert problem.startswith(f"card.toml of {name!r}") and sentence in problem
    assert problem.endswith(".") and len(problem) < 3_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


TRAINED = """
def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def loss(batch):
    return nn.functional.cross_entropy(batch.model(batch.x), batch.y, reduction="none")

class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        {forward}

@hookimpl
def bench_defenses():
    build = lambda loader: Wrapped(loader.trained(net(loader.shape, loader.classes)))
    yield Defense("trained", build, recipe=Recipe(net, loss, epochs=3, rate=1e-2), {more})
"""


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [("return self.inner(images)", ""), ("return self.inner(images)[:1]", "checks of 'trained' f")],
)
def test_a_submission_is_checked_with_weights_that_are_trained_for_it(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch, forward: str, sentence: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    text = TRAINED.format(forward=forward, more="quick=True")
    place = write_submission(folder.parent / "work", "trained", text, kind="defense")
    if not sentence:
        assert accept_submission(place, store, allow_unsandboxed=True).checked
        return
    with pytest.raises(BenchError, match=sentence):
        accept_submission(place, store, allow_unsandboxed=True)


def test_weights_that_are_missing_after_training_are_a_failure() -> None:
    def lost(fixture: object) -> str:
        raise NeedsTraining("0" * 64, "lost", "digits")

    def outcome(*, trained: bool) -> check.CheckOutcome:
        return run_check("attack", "lost", Check(lost), None, trained=trained).outcome

    assert outcome(trained=False) is check.CheckOutcome.NOT_APPLICABLE
    assert outcome(trained=True) is check.CheckOutcome.FAIL


def test_a_submission_to_which_no_check_applies_is_not_called_checked(
    folder: Path, store: Store
) -> None:
    text = TRAINED.format(forward="return self.inner(images)", more="datasets=('fashion-mnist',)")
    place = write_submission(folder.parent / "work", "trained", text, kind="defense")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_DATA", str(folder.parent / "nothing"))
        assert not accept_submission(place, store, allow_unsandboxed=True).checked


REGISTERED = {
    "nothing": ("@hookimpl\ndef bench_attacks():\n    return []\n", "yield it there"),
    "absent": (
        "@hookimpl\ndef bench_attacks():\n    yield MissingLibrary('absent', 'foolbox')\n",
        "the attack 'absent' needs foolbox, which is not installed",
    ),
}


@pytest.mark.parametrize("name", REGISTERED)
def test_a_submission_that_registers_nothing_fails(folder: Path, store: Store, name: str) -> None:
    text, sentence = REGISTERED[name]
    place = write_submission(folder.parent / "work", name, text)
    last = runner.run_checks(place)[-1]
    assert (last.check, last.outcome) == ("is-registered", check.CheckOutcome.FAIL)
    assert sentence in last.sentence
    with pytest.raises(BenchError, match=r"1 checks of .* fail\. is-registered: "):
        accept_submission(place, store, allow_unsandboxed=True)


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
    "corrupt": (corrupt, "mine.zip is not a readable zip file: "),
    "mislabelled": (mislabelled, "mine.zip is not a readable zip file: "),
    "escaping": (lambda path: packed(path, "\x1b[31mred/plugin.py"), "not a plain relative name"),
    "belling": (lambda path: packed(path, "red\x07/plugin.py"), "not a plain relative name"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_hostile_zip_is_refused_with_a_printable_message(
    folder: Path, store: Store, name: str
) -> None:
    make, sentence = ZIPS[name]
    path = folder.parent / "mine.zip"
    path.write_bytes(make(path))
    with pytest.raises(BenchError, match=re.escape(sentence)) as caught:
        accept_submission(path, store)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("code", ["-" * 100_000 + "1", "x=" + "a." * 50_000 + "a"])
def test_code_that_cannot_be_parsed_is_refused(folder: Path, store: Store, code: str) -> None:
    place = write_submission(folder.parent / "work", "mine", ATTACK.format(name="mine"))
    (place / "plugin.py").write_text(code)
    with pytest.raises(BenchError, match=r"plugin.py of 'mine' is not valid Python: \w+Error"):
        accept_submission(place, store)


@pytest.mark.parametrize("where", ["file", "file/in", "/proc/q"])
def test_a_submissions_folder_that_cannot_be_made_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store, where: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    place = write_submission(tmp_path / "work", "mine", ATTACK.format(name="mine"))
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / where))
    with pytest.raises(UnavailableError, match="BENCH_SUBMISSIONS") as caught:
        accept_submission(place, store)
    assert where in str(caught.value)
    assert Registry.load().submissions == {}


@pytest.mark.parametrize("where", ["file", "/proc"])
def test_a_template_folder_that_cannot_be_made_is_reported(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UnavailableError, match="choose another --folder"):
        templates.write_template("attack", "x1", tmp_path / where)


def test_a_submission_that_cannot_be_read_is_refused(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_submission(folder.parent / "work", "mine", ATTACK.format(name="mine"))

    def shut(*names: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "card.toml")

    monkeypatch.setattr("bench.submissions.intake.shutil.copyfile", shut)
    with pytest.raises(BenchError, match=r"cannot be read: .*Permission denied"):
        accept_submission(place, store)


def test_a_name_longer_than_any_path_is_unknown() -> None:
    with pytest.raises(BenchError, match="no plugin and no path is named 'aaa"):
        runner.run_checks("a" * 300)


def states(store: Store) -> dict[str, list[str]]:
    """Name -> states of each submission."""
    return {
        submission.name: [step.state for step in submission.history]
        for submission in store.submissions()
    }


@pytest.mark.parametrize("kind", ["archive", "card", "code"])
def test_a_rejection_does_not_change_the_state_of_an_accepted_submission(
    folder: Path, store: Store, kind: str
) -> None:
    place = write_submission(folder.parent / "work", "mine", ATTACK.format(name="mine"))
    accept_submission(place, store)
    store.record_submission_state("mine", "finished")
    match kind:
        case "archive":
            place = folder.parent / "mine.zip"
            place.write_bytes(b"no zip")
        case "card":
            (place / "card.toml").write_text("schema = [")
        case "code":
            (place / "plugin.py").write_text("def broken(:")
    with pytest.raises(BenchError):
        accept_submission(place, store)
    assert states(store) == {"mine": ["received", "queued", "finished"]}


def test_only_the_reviewed_files_may_have_the_name_of_a_reviewed_submission(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_submission(folder.parent / "work", "shipped", ATTACK.format(name="shipped"))
    monkeypatch.setattr(
        "bench.registry.discovery.REVIEWED_SUBMISSIONS", {"shipped": read_submission(place).digest}
    )
    assert accept_submission(place, store).name == "shipped"
    with (place / "plugin.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(BenchError, match=r"'shipped' ships with bench; choose another name"):
        accept_submission(place, store)
    assert states(store) == {"shipped": ["queued"]}


def test_a_rejected_submission_with_a_reviewed_name_leaves_no_state(
    folder: Path, store: Store
) -> None:
    place = write_submission(
        folder.parent / "work", "gaussian-noise", ATTACK.format(name="gaussian-noise")
    )
    with pytest.raises(BenchError, match="choose another name"):
        accept_submission(place, store)
    assert states(store) == {}
