"""Intake of submissions: what is accepted, and each rule by which one is rejected."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bench.core.errors import BenchError
from bench.registry.registry import Registry
from bench.registry.submission import parse_card, read_submission
from bench.registry.weights_file import why_unsafe
from bench.sandbox import isolation
from bench.store import Store
from bench.store.leftovers import owned_prefix
from bench.submissions import archive, templates
from bench.submissions.intake import accept_submission
from tests.fixtures.planted_plugins import CARD

GOOD = CARD.format(kind="attack", name="mine")


@pytest.fixture(autouse=True)
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a sandbox, so that no code of a submission is run; tests/sandbox has the rest."""
    monkeypatch.setattr(isolation, "why_unavailable", lambda: "this test has no sandbox")


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A new attack with an author."""
    place = templates.write_template("attack", "mine", tmp_path / "work")
    sign(place)
    return place


def sign(place: Path) -> None:
    card = place / "card.toml"
    card.write_text(card.read_text().replace(templates.AUTHOR, "An Author"))


def states(store: Store, name: str = "mine") -> list[str]:
    return [
        step.state for found in store.submissions() if found.name == name for step in found.history
    ]


def test_a_submission_is_accepted_and_queued(tmp_path: Path, store: Store, mine: Path) -> None:
    accepted = accept_submission(mine, store, tmp_path / "in")
    assert states(store) == ["received", "queued"]
    assert accepted.folder == tmp_path / "in" / "mine"
    assert (
        read_submission(accepted.folder).digest == read_submission(mine).digest == accepted.digest
    )
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["mine"]


def test_what_a_killed_command_left_is_removed_and_rejected(
    tmp_path: Path, store: Store, mine: Path
) -> None:
    code = "from bench.store.leftovers import owned_prefix as p; print(p('.incoming-'))"
    gone = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    alive = tmp_path / "in" / f"{owned_prefix('.incoming-')}b"
    left = tmp_path / "in" / f"{gone}a"
    for folder, name in ((left, "lost"), (left, "queued-before"), (alive, "checked-now")):
        (folder / name).mkdir(parents=True)
        store.record_submission_state(name, "received")
    store.record_submission_state("queued-before", "queued")
    accept_submission(mine, store, tmp_path / "in")
    assert states(store, "lost") == ["received", "rejected"]
    assert states(store, "queued-before") == ["received", "queued"]
    assert states(store, "checked-now") == ["received"]
    assert not left.exists() and alive.exists()


def test_an_accepted_submission_is_found_by_the_next_run(
    tmp_path: Path, store: Store, mine: Path
) -> None:
    accept_submission(mine, store, tmp_path / "in")
    assert "mine" in Registry.load(tmp_path / "in").submissions
    assert "mine" in Registry.load(tmp_path / "in", allow_unsandboxed=True).attacks


def test_no_code_of_a_submission_is_run_without_the_flag(
    tmp_path: Path, store: Store, mine: Path
) -> None:
    mark = tmp_path / "ran"
    plugin = mine / "plugin.py"
    plugin.write_text(plugin.read_text() + f"\nopen({str(mark)!r}, 'w').close()\n")
    assert not accept_submission(mine, store, tmp_path / "in").checked
    assert not mark.exists()
    assert accept_submission(mine, store, tmp_path / "in", allow_unsandboxed=True).checked
    assert mark.exists()


def test_a_submission_that_fails_a_check_is_rejected_with_its_message(
    tmp_path: Path, store: Store, mine: Path
) -> None:
    plugin = mine / "plugin.py"
    kept = "problem.ball.ascend(adv, gradient, rate, problem.x)"
    assert kept in plugin.read_text()
    plugin.write_text(plugin.read_text().replace(kept, "adv + gradient.sign()"))
    with pytest.raises(BenchError, match="iterates-stay-inside: step 1"):
        accept_submission(mine, store, tmp_path / "in", allow_unsandboxed=True)
    assert states(store) == ["received", "rejected"]
    assert "iterates-stay-inside" in store.submissions()[0].reason
    assert not (tmp_path / "in" / "mine").exists()


def test_submitting_the_same_files_again_changes_nothing(
    tmp_path: Path, store: Store, mine: Path
) -> None:
    one = accept_submission(mine, store, tmp_path / "in")
    assert accept_submission(mine, store, tmp_path / "in") == one
    assert not (tmp_path / "in" / ".older").exists()


def test_a_newer_version_replaces_the_older_which_is_kept(
    tmp_path: Path, store: Store, mine: Path
) -> None:
    first = accept_submission(mine, store, tmp_path / "in")
    with (mine / "plugin.py").open("a") as file:
        file.write("# better\n")
    second = accept_submission(mine, store, tmp_path / "in")
    assert first.digest != second.digest == read_submission(second.folder).digest
    (older,) = (tmp_path / "in" / ".older").iterdir()
    assert older.name == f"mine-{first.digest[:16]}"
    assert list(Registry.load(tmp_path / "in").submissions) == ["mine"]


def test_a_card_without_an_author_is_rejected(tmp_path: Path, store: Store) -> None:
    place = templates.write_template("attack", "mine", tmp_path / "work")
    with pytest.raises(BenchError, match="write your name"):
        accept_submission(place, store, tmp_path / "in")
    assert states(store) == ["received", "rejected"]


def test_a_built_in_name_is_rejected(tmp_path: Path, store: Store) -> None:
    place = templates.write_template("attack", "pgd", tmp_path / "work")
    sign(place)
    with pytest.raises(BenchError, match="'pgd' is built in or installed"):
        accept_submission(place, store, tmp_path / "in")


def test_a_claim_under_an_unknown_threat_model_is_rejected(tmp_path: Path, store: Store) -> None:
    place = templates.write_template("defense", "mine", tmp_path / "work")
    sign(place)
    with (place / "card.toml").open("a") as file:
        file.write('[[claims]]\nthreat = "digits-linff"\nrobust = 0.3\n')
    with pytest.raises(BenchError, match="Did you mean 'digits-linf'"):
        accept_submission(place, store, tmp_path / "in")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def broken(:", "is not valid Python"),
        ("x = 1", "has no bench_attacks; attacks are registered there"),
        ("def bench_attacks():\n    return ()", "without @hookimpl above it; add @hookimpl"),
    ],
)
def test_a_plugin_that_cannot_register_anything_is_rejected_without_running_it(
    tmp_path: Path, store: Store, mine: Path, text: str, sentence: str
) -> None:
    (mine / "plugin.py").write_text(text)
    with pytest.raises(BenchError, match=sentence):
        accept_submission(mine, store, tmp_path / "in")


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "setuid", "unknown", "huge"])
def test_a_submission_holds_plain_files_only(
    tmp_path: Path, store: Store, mine: Path, kind: str
) -> None:
    path = mine / "README.md"
    path.unlink()
    match kind:
        case "symlink":
            path.symlink_to("/etc/passwd")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "setuid":
            path.write_text("x")
            path.chmod(stat.S_ISUID | 0o755)
        case "unknown":
            (mine / "weights.pt").write_bytes(b"pickle")
        case "huge":
            path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(BenchError, match=r"plain files only|may hold|at most"):
        accept_submission(mine, store, tmp_path / "in")
    assert states(store) == ["rejected"]


CARDS: list[tuple[str, str]] = [
    (GOOD + 'licens = "MIT"', r"field 'licens' is unknown\. Did you mean 'licence'\?"),
    (GOOD.replace('licence = "MIT"', ""), "field 'licence' is missing"),
    (GOOD.replace("schema = 1", "schema = 2"), "field 'schema' came as 2: Input should be 1"),
    (GOOD.replace("schema = 1", ""), "field 'schema' is missing"),
    (GOOD.replace('kind = "attack"', 'kind = "atack"'), "field 'kind' came as 'atack'"),
    (GOOD.replace('title = "A submission"', "title = 7"), "field 'title' came as 7"),
    (GOOD.replace("A submission", "x" * 201), "at most 200 characters"),
    (GOOD.replace("A submission", "evil \\u202e txt"), r"cannot be seen \(U\+202E\)"),
    (GOOD.replace("A submission", "bell \\u0007"), r"cannot be seen \(U\+0007\)"),
    (GOOD.replace("A submission", "two\\nlines"), "holds a line break"),
    (GOOD.replace("A submission", "e\\u0301"), "normal form NFC"),
    (GOOD.replace('["An Author"]', "[]"), "field 'authors'"),
    (GOOD + 'cite = "javascript:alert(1)"', "field 'cite' came as 'javascript"),
    (GOOD + 'weights = "abc"', "field 'weights'"),
    (
        GOOD + '[[claims]]\nthreat = "a"\nrobust = 87.0',
        r"claims\.0\.robust.*less than or equal to 1",
    ),
    (GOOD + '[[claims]]\nthreat = "a"\nrobust = "0.5"', r"claims\.0\.robust"),
    (GOOD + '[[claims]]\nthreat = "a"\nrobus = 0.5', r"Did you mean 'robust'"),
    (GOOD.replace('"mine"', '"other"'), "give the folder and the card the same name"),
    (GOOD.replace('"mine"', '"Mine"'), "1 to 64 of a-z"),
    ("not toml at all", "is not TOML in UTF-8"),
]


@pytest.mark.parametrize(("text", "sentence"), CARDS)
def test_an_invalid_card_is_refused_with_the_field(text: str, sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        parse_card(text.encode(), "mine")


def test_a_card_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BenchError, match="is not TOML in UTF-8"):
        parse_card(b"title = '\xff'", "mine")


def test_a_valid_card_is_read() -> None:
    card = parse_card(GOOD.encode(), "mine")
    assert (card.name, card.kind, card.authors, card.claims) == (
        "mine",
        "attack",
        ["An Author"],
        [],
    )


@given(st.text(max_size=300))
def test_any_title_is_either_read_or_refused_with_a_message(title: str) -> None:
    text = GOOD.replace('"A submission"', json.dumps(title))
    try:
        card = parse_card(text.encode("utf-8", "surrogatepass"), "mine")
    except BenchError as error:
        assert "title" in str(error) or "TOML" in str(error)
    else:
        assert card.title == title
        assert title.isprintable() or all(not c.isascii() or c.isprintable() for c in title)


@pytest.fixture
def heavy(mine: Path) -> Path:
    """The submission with declared weights."""
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(3)}, mine / "weights.safetensors")
    declare(mine)
    return mine


def declare(place: Path) -> None:
    sha = hashlib.sha256((place / "weights.safetensors").read_bytes()).hexdigest()
    card = place / "card.toml"
    kept = [line for line in card.read_text().splitlines() if not line.startswith("weights")]
    card.write_text("\n".join([*kept, f'weights = "{sha}"', ""]))


def test_weights_come_with_the_digest_that_the_card_declares(
    tmp_path: Path, store: Store, heavy: Path
) -> None:
    accepted = accept_submission(heavy, store, tmp_path / "in")
    assert (accepted.folder / "weights.safetensors").exists()
    with (heavy / "weights.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(BenchError, match="declares weights"):
        accept_submission(heavy, store, tmp_path / "in")


def written(path: Path, header: object, body: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def tensor(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


TWICE = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}'
NAN = struct.pack("<f", float("nan"))
WEIGHTS: list[tuple[str, object, bytes, str]] = [
    ("empty", None, b"", "announces a header"),
    ("short", None, b"\x00" * 4, "announces a header"),
    ("a pickle", None, b"\x80\x04\x95" + b"." * 100, "announces a header"),
    ("no json", b"{'a'}", b"", "not JSON"),
    ("a list", [], b"", "not a table of tensors"),
    ("deep", b"[" * 100_000, b"", "not JSON"),
    ("twice", TWICE, b"\x00" * 4, "names the key 'a' twice"),
    ("giant", {"a": tensor([10**12], 0, 4)}, b"\x00" * 4, "bytes 0 to 4"),
    ("overlap", {"a": tensor([2], 0, 8), "b": tensor([1], 4, 8)}, b"\x00" * 8, "'b' the bytes 4"),
    ("hole", {"a": tensor([1], 4, 8)}, b"\x00" * 8, "bytes 4 to 8; from 0"),
    ("truncated", {"a": tensor([2], 0, 8)}, b"\x00" * 4, "holds 4 bytes of values"),
    ("tail", {"a": tensor([1], 0, 4)}, b"\x00" * 8, "its header describes 4"),
    ("negative", {"a": tensor([-1], 0, 4)}, b"\x00" * 4, "the shape"),
    ("truth", {"a": tensor([True], 0, 4)}, b"\x00" * 4, "the shape"),
    ("object", {"a": tensor([1], 0, 4, "OBJ")}, b"\x00" * 4, "as 'OBJ'"),
    ("bare", {"a": [0, 4]}, b"\x00" * 4, "without dtype"),
    ("nan", {"a": tensor([1], 0, 4)}, NAN, "'a' that are not finite"),
    ("half", {"a": tensor([1], 0, 2, "F16")}, np.float16("inf").tobytes(), "not finite"),
    ("brain", {"a": tensor([1], 0, 2, "BF16")}, b"\x80\x7f", "not finite"),
]


@pytest.mark.parametrize(("name", "header", "body", "sentence"), WEIGHTS)
def test_an_invalid_weights_file_is_refused(
    tmp_path: Path, name: str, header: object, body: bytes, sentence: str
) -> None:
    path = tmp_path / "weights.safetensors"
    if header is None:
        path.write_bytes(body)
    else:
        written(path, header, body)
    assert sentence in why_unsafe(path)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_a_valid_weights_file_is_accepted(tmp_path: Path, kind: torch.dtype) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(3, 4, dtype=kind), "b": torch.zeros(0, dtype=kind)}, path)
    assert why_unsafe(path) == ""


def test_a_huge_float_is_finite(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.tensor([3e38, -3e38])}, path)
    assert why_unsafe(path) == ""


def test_a_submission_with_infinite_weights_is_rejected(
    tmp_path: Path, store: Store, heavy: Path
) -> None:
    save_file({"weight": torch.tensor([float("nan")])}, heavy / "weights.safetensors")
    declare(heavy)
    with pytest.raises(BenchError, match="not finite"):
        accept_submission(heavy, store, tmp_path / "in")


def zipped(path: Path, files: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode or stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, content)
    return path


@pytest.mark.parametrize("top", ["", "mine/"])
def test_a_zip_is_accepted_like_the_folder_itself(
    tmp_path: Path, store: Store, mine: Path, top: str
) -> None:
    files = {f"{top}{p.name}": p.read_bytes() for p in mine.iterdir()}
    accepted = accept_submission(zipped(tmp_path / "mine.zip", files), store, tmp_path / "in")
    assert accepted.digest == read_submission(mine).digest
    assert states(store) == ["received", "queued"]


BLOCK = 1 << 20
BOMB = b"\x00" * BLOCK
ZIPS: list[tuple[dict[str, bytes], int, str]] = [
    ({"../plugin.py": b""}, 0, "not a plain relative name"),
    ({"/plugin.py": b""}, 0, "not a plain relative name"),
    ({"mine//plugin.py": b""}, 0, "not a plain relative name"),
    ({"C:plugin.py": b""}, 0, "not a plain relative name"),
    ({"pluginé.py": b""}, 0, "not a plain relative name"),
    ({"a/b/plugin.py": b""}, 0, "not allowed; a submission may hold"),
    ({"mine/inner.zip": b""}, 0, "not allowed; a submission may hold"),
    ({"mine/plugin.py": b"", "mine/Plugin.py": b""}, 0, "not allowed; a submission may hold"),
    ({"mine/plugin.py": b"", "yours/card.toml": b""}, 0, "holds 2 folders"),
    ({"mine/plugin.py": b"target"}, stat.S_IFLNK | 0o777, "a link or a device"),
    ({"mine/plugin.py": b""}, stat.S_IFIFO | 0o777, "a link or a device"),
    ({"mine/weights.safetensors": BOMB * 8}, 0, "unpacks to 8388608 bytes"),
    ({f"mine/{n}": b"" for n in range(17)}, 0, "holds 17 members"),
    (
        {"mine/README.md": np.random.default_rng(0).bytes(BLOCK + 1)},
        0,
        "to more bytes than allowed",
    ),
    ({}, 0, "holds 0 folders"),
]


@pytest.mark.parametrize(("files", "mode", "sentence"), ZIPS)
def test_a_zip_that_breaks_a_rule_is_refused(
    tmp_path: Path, files: dict[str, bytes], mode: int, sentence: str
) -> None:
    path = zipped(tmp_path / "mine.zip", files, mode)
    with pytest.raises(BenchError, match=sentence):
        archive.unpack_archive(path, tmp_path / "out")
    assert not (tmp_path / "plugin.py").exists()


def test_a_zip_with_a_false_size_is_stopped_while_it_is_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "mine.zip", {"mine/plugin.py": BOMB + BOMB})
    content = path.read_bytes()
    lie = content.replace(struct.pack("<I", 2 << 20), struct.pack("<I", 100))
    path.write_bytes(lie)
    with pytest.raises(BenchError):
        archive.unpack_archive(path, tmp_path / "out")
    written_out = [p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert all(size <= 1 << 20 for size in written_out)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"Rar!", b"\x1f\x8b\x08"])
def test_a_file_that_is_not_a_zip_is_refused(tmp_path: Path, store: Store, content: bytes) -> None:
    (tmp_path / "mine.zip").write_bytes(content)
    with pytest.raises(BenchError, match="is not a readable zip file"):
        accept_submission(tmp_path / "mine.zip", store, tmp_path / "in")
    assert states(store) == ["rejected"]


def test_a_corrupt_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "mine.zip", {"mine/plugin.py": os.urandom(4096)})
    content = bytearray(path.read_bytes())
    content[200:260] = b"x" * 60
    path.write_bytes(bytes(content))
    with pytest.raises(BenchError, match="is not a readable zip file"):
        archive.unpack_archive(path, tmp_path / "out")


def test_a_missing_folder_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(BenchError, match="is not a folder"):
        accept_submission(tmp_path / "nothing", store, tmp_path / "in")


def test_a_rejected_submission_leaves_no_files(tmp_path: Path, store: Store) -> None:
    place = templates.write_template("attack", "mine", tmp_path / "work")
    with pytest.raises(BenchError):
        accept_submission(place, store, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []
