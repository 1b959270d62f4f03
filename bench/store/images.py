"""Images: a sample for the leaderboard in the database, exact ones as content-addressed files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from sqlalchemy import insert, select, text
from sqlalchemy.engine import Connection

from bench.core.errors import BenchError, StorageError
from bench.core.hashing import canonical
from bench.core.outcomes import KeptImage
from bench.store.leftovers import partial_path
from bench.store.seals import add_parts
from bench.store.tables import CHUNKS, IMAGES, AnyRow
from bench.store.uncommitted import UncommittedFile
from bench.store.waiting import NO_SPACE

Pixel = TypeVar("Pixel", np.uint8, np.float32)
Exact = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


def add_images(connection: Connection, key: str, kept: tuple[KeptImage, ...]) -> None:
    """Add images of a chunk to its cell; raises BenchError where two shapes differ."""
    if kept:
        rows = [_row(key, image) for image in kept]
        connection.execute(insert(IMAGES), rows)
        add_parts(connection, IMAGES, key, rows)


def read_images(connection: Connection, key: str) -> list[KeptImage]:
    """The sample of images recorded for a cell, in item order."""
    query = select(IMAGES).where(IMAGES.c.cell == key).order_by(IMAGES.c.item)
    return [_kept_image(row) for row in connection.execute(query)]


def _kept_image(row: AnyRow) -> KeptImage:
    return KeptImage(
        item=row.item,
        original=_shaped(np.frombuffer(row.original, np.uint8), row.shape),
        adversarial=_shaped(np.frombuffer(row.adversarial, "<f4").astype(np.float32), row.shape),
        true_label=row.true_label,
        clean_label=row.clean_label,
        clean_confidence=row.clean_confidence,
        label=row.label,
        confidence=row.confidence,
    )


def packed_exact(exact: Exact) -> tuple[str, bytes]:
    """The content of a file of images and its SHA-256.

    `exact` is items [n] and images [n, C, H, W]. Raises BenchError where their types or lengths are
    wrong.
    """
    from safetensors.numpy import save

    item, adv = exact
    if len(item) != len(adv) or adv.dtype != np.float32 or item.dtype != np.int32:
        raise BenchError(
            f"exact images came as {item.dtype}[{len(item)}] and {adv.dtype}[{len(adv)}],"
            " expected as many int32 items as float32 images."
        )
    content = save({"item": np.ascontiguousarray(item), "adv": np.ascontiguousarray(adv)})
    return hashlib.sha256(content).hexdigest(), content


def write_exact(file: UncommittedFile, content: bytes) -> None:
    """Mark a file as not committed, write it and sync it to disk.

    Raises StorageError where it cannot be written.
    """
    try:
        file.begin()
        _write_durably(file.path, content)
    except OSError as error:
        remedy = NO_SPACE.get(error.errno or 0)
        why = f"its disk {remedy}" if remedy else f"{error.strerror}: make it a folder that can be"
        why += "" if remedy else " written"
        raise StorageError(
            f"no images can be written to {file.path.parent.parent}: {why}, set BENCH_ARTIFACTS, or"
            " run with --keep-images none.",
            temporary=remedy is not None,
        ) from error


def _intact_content(folder: Path, digest: str) -> bytes:
    content = _content(path_of(folder, digest))
    if hashlib.sha256(content).hexdigest() != digest:
        raise BenchError(f"{path_of(folder, digest)} was altered: run `bench db check`.")
    return content


def read_exact(connection: Connection, folder: Path, key: str) -> Exact | None:
    """Items [n] and exact images [n, C, H, W] of a cell in item order; None where there are none.

    Raises BenchError where a file was altered or is missing.
    """
    from safetensors.numpy import load

    parts = [load(_intact_content(folder, digest)) for digest in files_of(connection, key)]
    if not parts:
        return None
    item = np.concatenate([part["item"] for part in parts])
    order = np.argsort(item, kind="stable")
    return item[order], np.concatenate([part["adv"] for part in parts])[order]


def files_of(connection: Connection, key: str | None = None) -> list[str]:
    """The digests of the files of exact images of a cell; None: of all cells."""
    query = select(CHUNKS.c.exact).where(CHUNKS.c.exact != "").order_by(CHUNKS.c.start)
    if key is not None:
        query = query.where(CHUNKS.c.cell == key)
    return list(connection.execute(query).scalars())


def named_files(connection: Connection, digests: Collection[str]) -> set[str]:
    """Those of some files of exact images that a row names, once open transactions have ended."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"LOCK TABLE {CHUNKS.name} IN SHARE MODE"))
    query = select(CHUNKS.c.exact).where(CHUNKS.c.exact.in_(digests))
    return set(connection.execute(query).scalars())


def path_of(folder: Path, digest: str) -> Path:
    """Path of the file with this digest."""
    return folder / digest[:2] / f"{digest}.safetensors"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BenchError(f"{path} is missing: restore it, or evaluate the cell again.") from error


def _write_durably(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return  # an altered or unfinished one is written anew
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent):
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    # After a power failure a rename is lost unless the folder itself was synced.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _require_one_shape(image: KeptImage) -> None:
    if image.original.shape != image.adversarial.shape:
        raise BenchError(
            f"item {image.item} was kept as {image.original.shape} beside"
            f" {image.adversarial.shape}: keep both in one shape."
        )


def _row(key: str, image: KeptImage) -> dict[str, object]:
    _require_one_shape(image)
    return {
        "cell": key,
        "item": image.item,
        "shape": canonical(list(image.original.shape)),
        "original": np.ascontiguousarray(image.original, np.uint8).tobytes(),
        "adversarial": np.ascontiguousarray(image.adversarial, "<f4").tobytes(),
        "true_label": image.true_label,
        "clean_label": image.clean_label,
        "clean_confidence": image.clean_confidence,
        "label": image.label,
        "confidence": image.confidence,
    }


def _shaped(flat: npt.NDArray[Pixel], shape: str) -> npt.NDArray[Pixel]:
    return flat.reshape(json.loads(shape)).copy()
