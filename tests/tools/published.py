"""Makes the published results: trains the networks, evaluates them, writes weights and database.

`BENCH_DATA=FOLDER python -m tests.tools.published WORK` continues where it stopped: trained weights
lie in the cache folder, outcomes in WORK/results.db. The last step writes the files that the
project ships. FOLDER holds the data sets, and the weights of the networks of other authors. Names
of defenses after WORK add these alone to what is in WORK; all together take half an hour of a core.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from bench.cli.options import print_json
from bench.core.cells import CLEAN
from bench.core.errors import BenchError
from bench.core.folders import cache_folder
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.registry.registry import Registry
from bench.results.leaderboards import leaderboards
from bench.results.published import SourceRecord, as_record, file_digest, source_record_file
from bench.results.ranking import load_ranking
from bench.results.row_versions import is_done
from bench.store import Store
from bench.store.damage import check_database
from bench.store.published import published_database
from bench.threats import fingerprint
from bench.training.loop import train_weights
from bench.training.recipes import recipe_digest
from bench.training.state import format_epoch
from bench.training.weights_cache import WeightsFiles
from plugins.published._weights import DIGESTS, published_digests, weights_file

ROOT = Path(__file__).parents[2]
GREY = ("standard", "fast", "pgd")
CELLS = {
    "mnist-linf": (*(f"mnist-{training}" for training in GREY), "convex-mnist"),
    "fashion-linf": (*(f"fashion-{training}" for training in GREY), "convex-fashion"),
    "cifar10-linf-2": (
        *(f"resnet2b-{training}" for training in (*GREY, "trades")), "resnet2b-cifar10",
    ),
}  # fmt: skip
"""Threat model -> the defenses that are evaluated under it."""
EXAMPLES = 500
"""First test images of the balanced order; below 500 there are no ranks."""
PICTURED = "pgd"
"""The attack of which images are kept: those of every cell would take 13 MB."""
MOST_DATABASE, MOST_WEIGHTS, MOST_ALL_WEIGHTS = 5_000_000, 3_000_000, 24_000_000
"""Bytes of the database, of one weights file and of all."""
EVALUATION = ("engine", "referee", "threats")
"""Packages of `bench` that decide outcomes, besides the attacks and defenses."""


def main(work: Path, names: Sequence[str] = ()) -> None:
    """Train, evaluate and publish some defenses, by default all; prints the rows as JSON."""
    work.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{(work / 'results.db').absolute()}"
    chosen = names or [name for some in CELLS.values() for name in some]
    write_weights(Registry.without_submissions(), chosen)
    evaluate(url, chosen)
    publish(url, published_database())
    write_sources(Registry.without_submissions())
    print_json({"rows": list(ranked_rows(f"sqlite:///{published_database()}"))})


def trained_names(registry: Registry) -> list[str]:
    """The defenses whose weights are trained here, those without an inner attack first."""
    names = [name for some in CELLS.values() for name in some]
    own = [name for name in names if registry.find("defense", name).value.recipe is not None]
    return sorted(own, key=lambda name: (not name.endswith("-standard"), own.index(name)))


def write_weights(registry: Registry, names: Sequence[str]) -> None:
    """Train what is not trained yet; write each weights file, and the table of their digests."""
    digests = published_digests()
    for name in (name for name in trained_names(registry) if name in names):
        value = registry.find("defense", name).value
        dataset = registry.find("dataset", value.datasets[0]).value
        digests[name] = train_weights(
            registry,
            name,
            dataset,
            progress=lambda epoch: print(format_epoch(epoch), file=sys.stderr),
        )
        files = WeightsFiles(cache_folder(), recipe_digest(registry, name, dataset))
        DIGESTS.with_name(weights_file(name)).write_bytes(files.content() or b"")
    lines = [f'{name} = "{digest}"\n' for name, digest in sorted(digests.items())]
    DIGESTS.write_text(
        "# SHA-256 of the weights files; see tests/tools/published.py.\n" + "".join(lines)
    )


def evaluate(url: str, names: Sequence[str]) -> None:
    """Evaluate every required attack, and the follow-up attacks that warnings call for."""
    pairs = [(threat, name) for threat, some in CELLS.items() for name in some if name in names]
    for threat, name in pairs:
        for attacks, images in (((PICTURED,), "sample"), ((), "none")):
            selection = Selection((threat,), (name,), attacks, EXAMPLES)
            run = MatrixRun(selection, url, device="cpu", keep_images=images, certify="none")
            failed = run.run()
            if failed:
                raise BenchError(f"{failed} cells of {name} failed; see `bench report --db {url}`.")


def publish(url: str, target: Path) -> None:
    """Write the database as one file that readers leave untouched; raises BenchError on a fault.

    The weights of learned surrogates stay behind: they have 170 MB, and no root covers them.
    Without a write-ahead log, readers write no file beside it.
    """
    with Store.open(url, read_only=True) as store:
        root = store.root()
        partial = target.with_name("results.partial")
        store.backup(partial)
    with closing(sqlite3.connect(partial, isolation_level=None)) as connection:
        connection.execute("DELETE FROM weights")
        connection.execute("DELETE FROM seals WHERE kind = 'weights'")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")
    place = f"sqlite:///{partial}"
    faults = [fault.sentence for fault in check_database(place)]
    with Store.open(place, read_only=True) as store:
        faults += [] if store.root() == root else [f"the root became {store.root()}"]
    size = partial.stat().st_size
    faults += [] if size <= MOST_DATABASE else [f"it has {size} bytes"]
    if faults:
        raise BenchError(f"{partial} cannot be published: {'; '.join(faults)}.")
    partial.replace(target)


def write_sources(registry: Registry) -> None:
    """Write which source files made the published cells, so that later changes are seen."""
    with Store.open(f"sqlite:///{published_database()}", read_only=True) as store:
        cells = [row.cell for row in store.cells() if is_done(row)]
    attacks = {cell.attack for cell in cells} - {CLEAN}
    record = SourceRecord(
        attack={name: source_paths(registry, "attack", name) for name in attacks},
        defense={name: source_paths(registry, "defense", name) for cell in cells
                 for name in [cell.defense]},
        evaluation=[
            str(path.relative_to(ROOT))
            for package in EVALUATION
            for path in (ROOT / "bench" / package).glob("*.py")
        ],
    )  # fmt: skip
    paths = {*record.evaluation, *all_paths(record.attack), *all_paths(record.defense)}
    digests = {path: file_digest(ROOT / path) for path in paths}
    whole = as_record(SourceRecord(digests, record.attack, record.defense, record.evaluation))
    source_record_file().write_text(json.dumps(whole, indent=1) + "\n")


def source_paths(registry: Registry, kind: str, name: str) -> list[str]:
    """The files of a plugin, from the root of the project, as its digest covers them."""
    file = Path(str(sys.modules[registry.find(kind, name).module].__file__))
    found = fingerprint._imported_files(file, ROOT, set())
    return sorted(str(path.relative_to(ROOT)) for path in found)


def all_paths(table: Mapping[str, Sequence[str]]) -> set[str]:
    """Every path of a table of a `SourceRecord`."""
    return {path for paths in table.values() for path in paths}


def ranked_rows(url: str) -> Iterator[dict[str, object]]:
    """Defense, rank, clean and robust accuracy of each row of each leaderboard."""
    with Store.open(url, read_only=True) as store:
        for leaderboard in leaderboards(store):
            for row in load_ranking(store, leaderboard):
                yield {
                    "threat": leaderboard.name, "defense": row.defense,
                    "rank": row.rank and row.rank.best, "clean": row.clean.k,
                    "robust": row.robust_ranked.k, "n": row.robust_ranked.n,
                    "verdict": row.verdict, "note": row.note,
                }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
