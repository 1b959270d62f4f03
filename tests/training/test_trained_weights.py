"""Weights of a database: every machine uses the first ones, and its folder holds copies of them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sqlalchemy import text
from torch import Tensor

from bench.core.errors import BenchError
from bench.engine.machine import this_machine
from bench.plugin import Linf
from bench.store import Store
from bench.training import tasks
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.label_surrogate import LabelSurrogateRecipe, LearnedSurrogate
from bench.training.surrogate_cache import label_function, load_or_learn
from bench.training.trained_weights import WeightsSource
from bench.training.weights_cache import WeightsFiles
from tests.fixtures.known_models import gaussian
from tests.fixtures.known_models import linear as linear_model
from tests.fixtures.small_defenses import (
    DIGITS,
    EPS,
    defense,
    one_thread,
    registry,
    small_recipe,
    train,
)

__all__ = ["one_thread"]

CPU = torch.device("cpu")
BALL = Linf(EPS)
SHORT = LabelSurrogateRecipe("short", epochs=1)
KNOWN = registry(defense("student", small_recipe()))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def recipe() -> str:
    with pytest.raises(NeedsTraining) as need:
        DefenseBuilder(KNOWN, "student", DIGITS, Path("/nowhere")).build()
    return need.value.recipe


def other_last_bit(files: WeightsFiles) -> str:
    """Change the last bit of a weight, as other roundings do; the digest of the new weights."""
    before = files.weights.read_bytes()
    content = before[:-1] + bytes([before[-1] ^ 1])
    record = files.record.read_text()
    files.weights.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    files.record.write_text(record.replace(hashlib.sha256(before).hexdigest(), found))
    return found


def other_rounding(folder: Path) -> str:
    """Train in a folder as a machine does whose roundings are others; the digest of the weights."""
    train(folder, small_recipe())
    return other_last_bit(WeightsFiles(folder, recipe()))


def built(store: Store | None, folder: Path) -> DefenseBuilder:
    builder = DefenseBuilder(KNOWN, "student", DIGITS, source=WeightsSource(folder, store))
    builder.complete()
    return builder


def test_the_machine_that_trained_the_weights_is_recorded(store: Store, tmp_path: Path) -> None:
    trained = train(tmp_path / "one", small_recipe())
    assert built(store, tmp_path / "one").recipes == {recipe(): trained}
    row = store.weights(recipe())
    assert row is not None and row.digest == trained
    assert row.machine == this_machine(CPU).to_json()


def test_the_first_user_of_a_database_uploads_the_weights_of_its_folder(
    store: Store, tmp_path: Path
) -> None:
    first = train(tmp_path / "one", small_recipe())
    second = other_rounding(tmp_path / "two")
    assert first != second
    one, two = built(store, tmp_path / "one"), built(store, tmp_path / "two")
    assert one.digest == two.digest and one.recipes == two.recipes == {recipe(): first}
    assert built(None, tmp_path / "two").digest != two.digest, "without the database: its own"
    assert built(store, tmp_path / "cold").digest == one.digest
    copies = sorted(path.name for path in (tmp_path / "cold").rglob("*.safetensors"))
    assert copies == [f"{first}.safetensors"]


def test_two_databases_may_hold_different_weights_of_one_recipe(
    store: Store, tmp_path: Path
) -> None:
    train(tmp_path / "one", small_recipe())
    other_rounding(tmp_path / "two")
    with Store.open(f"sqlite:///{tmp_path / 'other.db'}") as other:
        digests = built(store, tmp_path / "one").digest, built(other, tmp_path / "two").digest
        assert digests[0] != digests[1]
        for folder in ("one", "two", "cold", "one", "cold"):
            assert built(store, tmp_path / folder).digest == digests[0]
            assert built(other, tmp_path / folder).digest == digests[1]


def test_another_process_builds_with_the_copy_that_it_is_told(store: Store, tmp_path: Path) -> None:
    train(tmp_path / "one", small_recipe())
    built(store, tmp_path / "one")
    other_rounding(tmp_path / "two")
    two = built(store, tmp_path / "two")
    pinned = WeightsSource(tmp_path / "two", pinned=two.recipes)
    assert DefenseBuilder(KNOWN, "student", DIGITS, source=pinned).digest == two.digest


def test_a_reader_of_a_database_without_weights_uses_its_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    Store.open(url).close()
    first = train(tmp_path / "one", small_recipe())
    with Store.open(url, read_only=True) as reader:
        assert built(reader, tmp_path / "one").recipes == {recipe(): first}
        assert reader.weights_digest(recipe()) is None


@pytest.mark.parametrize("damaged", ["database", "copy", "own"])
def test_damaged_weights_are_refused_in_one_sentence(
    store: Store, tmp_path: Path, damaged: str
) -> None:
    first = train(tmp_path / "one", small_recipe())
    built(store, tmp_path / "one")
    built(store, tmp_path / "two")
    if damaged == "database":
        with store.writing() as connection:
            connection.execute(text("update weights set content = x'00'"))
        built(store, tmp_path / "one")
        built(store, tmp_path / "two")
        with pytest.raises(BenchError, match=r"in the database are damaged .* a backup\.$"):
            built(store, tmp_path / "cold")
        assert not list((tmp_path / "cold").rglob("*.safetensors"))
        return
    folder = tmp_path / ("two" if damaged == "copy" else "one")
    (file,) = folder.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BenchError, match="not the file that training wrote; delete it: it is"):
        built(store, folder)
    file.unlink()
    assert built(store, folder).recipes == {recipe(): first}


def test_a_database_keeps_the_first_surrogate_of_a_defense(store: Store, tmp_path: Path) -> None:
    model, asked = linear_model(gaussian(10, 64, seed=3)), list[int]()

    def labels(images: Tensor) -> Tensor:
        asked.append(len(images))
        return label_function(model)(images)

    def learned(folder: str, database: Store | None = store) -> LearnedSurrogate:
        source = WeightsSource(tmp_path / folder, database)
        return load_or_learn("one", labels, DIGITS, BALL, SHORT, source=source)

    first, queries = learned("one"), sum(asked)
    assert learned("two").digest == first.digest and sum(asked) == queries
    apart = learned("three", None)
    assert apart.digest == first.digest, "one machine learns the same weights twice"
    (weights,) = (tmp_path / "three").rglob("*.safetensors")
    other_last_bit(WeightsFiles(tmp_path / "three", weights.stem))
    assert learned("three", None).digest != first.digest
    third = learned("three")
    assert (third.digest, third.queries, third.agreement) == (
        first.digest, first.queries, first.agreement,
    )  # fmt: skip
    assert store.check() == []


def test_of_two_processes_that_train_at_once_the_first_commit_counts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has lost its lease, as after a suspension, and trained other weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    with pytest.raises(NeedsTraining) as need:
        DefenseBuilder(KNOWN, "student", DIGITS).complete()
    first: list[str] = []

    def other_machine_commits(_: str) -> None:
        if not first:
            with store.writing() as connection:
                connection.execute(text("update tasks set lease_until = 0, owner = '1@away#1'"))
            lease = store.lease_task(tasks.training_task(need.value.recipe), "2@away#2")
            assert lease is not None
            first.append(other_rounding(tmp_path / "one"))
            WeightsSource(tmp_path / "one", store).commit(need.value.recipe, lease)

    assert not tasks.train_once(KNOWN, store, "me", need.value, DIGITS, CPU, other_machine_commits)
    two = DefenseBuilder(KNOWN, "student", DIGITS, source=WeightsSource(store=store))
    two.complete()
    assert two.recipes == {need.value.recipe: first[0]}
    own = WeightsSource().find(need.value.recipe)
    assert own is not None and hashlib.sha256(own.content).hexdigest() != first[0]


PROGRAM = """
import sys
import time
import torch
from bench.store import Store, process_id
from bench.training.defense_builder import DefenseBuilder
from bench.training.tasks import train_once
from bench.training.trained_weights import WeightsSource
from bench.training.weights_cache import WeightsFiles
from tests.training.test_trained_weights import CPU, DIGITS, KNOWN, NeedsTraining
torch.set_num_threads(1)
with Store.open(sys.argv[1]) as store:
    trained = 0
    while True:
        builder = DefenseBuilder(KNOWN, "student", DIGITS, source=WeightsSource(store=store))
        try:
            builder.complete()
        except NeedsTraining as need:
            lines = []
            train_once(KNOWN, store, process_id(), need, DIGITS, CPU, lines.append)
            trained += bool(lines)
            time.sleep(0.2)
        else:
            break
print(builder.digest, trained)
"""


@pytest.mark.slow
def test_machines_with_cold_folders_that_start_at_once_train_once(
    store: Store, tmp_path: Path
) -> None:
    running = [
        subprocess.Popen(
            ["env", f"XDG_CACHE_HOME={tmp_path / place}", f"ATEN_CPU_CAPABILITY={capability}",
             sys.executable, "-c", PROGRAM, f"sqlite:///{tmp_path / 'bench.db'}"],
            stdout=subprocess.PIPE, text=True,
        )
        for place, capability in (("one", "default"), ("two", "avx2"))
    ]  # fmt: skip
    told = [process.communicate()[0].split() for process in running]
    assert len({digest for digest, _ in told}) == 1
    assert sorted(trained for _, trained in told) == ["0", "1"]
