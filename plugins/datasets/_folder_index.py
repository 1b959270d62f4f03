"""Lists the images of a folder that has one subfolder for each class; decodes nothing."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Suffixes of files that are read as images, in lower case; other files are left out."""
SYSTEM_NAMES = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")
)
"""Names, in lower case, that operating systems and archives add, beside those that begin with a
dot."""


@dataclass(frozen=True)
class FolderIndex:
    """The images of a folder, in an order that is the same on every machine."""

    root: Path
    classes: tuple[str, ...]
    """Names of the subfolders in Unicode normal form C, in the order of their code points."""
    files: tuple[str, ...]
    """Path of each image below the root, sorted by class and by name."""
    labels: tuple[int, ...]
    """Class of each image."""
    left_out: tuple[str, ...]
    """Suffixes of the files that are no images, most frequent first."""

    @property
    def summary(self) -> str:
        """Number of images and classes, and which other files were left out."""
        counts = f"{len(self.files)} images of {len(self.classes)} classes in {self.root}"
        if not self.left_out:
            return f"{counts}."
        return f"{counts}; other files were left out ({', '.join(self.left_out)})."


def folder_index(root: Path) -> FolderIndex:
    """List the images below `root`; hidden files and folders are left out.

    Raises ValueError, with a sentence that names the place, where the folder is missing or has no
    class folders, a class folder is empty or has subfolders, images lie beside the class folders,
    something is a symbolic link or no regular file, two class names differ in case only, or a name
    cannot be printed. Raises OSError where a folder cannot be listed.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(f"the folder {root} {what}; name a folder with a subfolder per class.")
    names = _class_folders(root)
    samples: list[tuple[str, int]] = []
    left_out: Counter[str] = Counter()
    for label, folder in enumerate(names.values()):
        samples += [(f"{folder}/{file}", label) for file in _images(root / folder, left_out)]
    others = tuple(suffix for suffix, _ in left_out.most_common())
    files, labels = tuple(file for file, _ in samples), tuple(label for _, label in samples)
    return FolderIndex(root, tuple(names), files, labels, others)


def _class_folders(root: Path) -> dict[str, str]:
    """Class name in normal form C -> name of its folder, sorted. Raises ValueError."""
    names: dict[str, str] = {}
    folded: dict[str, str] = {}
    for entry in _entries(root):
        if not entry.is_dir(follow_symlinks=False):
            if _suffix(entry.name) in SUFFIXES:
                raise ValueError(
                    f"the image {entry.path} lies beside the class folders; move it into the "
                    "folder of its class."
                )
            continue
        name = unicodedata.normalize("NFC", entry.name)
        other = folded.setdefault(name.casefold(), entry.name)
        if other != entry.name:
            raise ValueError(
                f"the class folders {other!r} and {entry.name!r} in {root} have the same name on "
                "machines that ignore case; rename one."
            )
        names[name] = entry.name
    if not names:
        raise ValueError(f"the folder {root} has no class folder; make one per class.")
    return dict(sorted(names.items()))


def _images(folder: Path, left_out: Counter[str]) -> list[str]:
    """Names of the images in a class folder, sorted. Raises ValueError."""
    images = []
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            raise ValueError(
                f"{entry.path} is a folder inside a class folder; name the folder whose subfolders "
                "are the classes, and keep all images of a class in one folder."
            )
        suffix = _suffix(entry.name)
        if suffix not in SUFFIXES:
            left_out[suffix or "without suffix"] += 1
        elif entry.is_file(follow_symlinks=False):
            images.append(entry.name)
        else:
            raise ValueError(f"{entry.path} is no regular file; remove it.")
    if not images:
        raise ValueError(f"the class folder {folder} has no image; remove it or add images.")
    return sorted(images, key=lambda name: (unicodedata.normalize("NFC", name), name))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder and is not hidden, in any order. Raises ValueError."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
                continue
            if not entry.name.isprintable():
                raise ValueError(
                    f"the name {entry.name!r} in {folder} has a character that cannot be printed; "
                    "rename it."
                )
            if entry.is_symlink():
                raise ValueError(
                    f"{entry.path} is a symbolic link, and links are not followed; replace it by a "
                    "copy of what it names."
                )
            yield entry


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
