"""Zip files that break one rule each, from the files of a submission."""

from __future__ import annotations

import stat
import warnings
import zipfile
from pathlib import Path


def write_archive(folder: Path, fault: str) -> Path:
    """Pack a submission's folder into a zip file beside it that has this fault; its path."""
    path = folder.with_suffix(".zip")
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(f"{folder.name}/{name}", text)
        _add_fault(archive, folder.name, fault)
    _damage(path, fault)
    return path


def _add_fault(archive: zipfile.ZipFile, top: str, fault: str) -> None:
    match fault:
        case "bomb":
            archive.writestr(f"{top}/weights.safetensors", bytes(2**25))
        case "parent-folder":
            archive.writestr(f"{top}/../../gauntlet-hostile-file", "x")
        case "absolute-path":
            archive.writestr("/tmp/gauntlet-hostile-file", "x")
        case "backslash":
            archive.writestr("..\\gauntlet-hostile-file", "x")
        case "symbolic-link":
            link = zipfile.ZipInfo(f"{top}/weights.safetensors")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/shadow")
        case "many-members":
            for number in range(10_000):
                archive.writestr(f"{top}/{number}", "")
        case "nested-archive":
            archive.writestr(f"{top}/more.zip", "x")
        case "same-name-twice":
            with warnings.catch_warnings(action="ignore"):  # zipfile warns of it
                archive.writestr(f"{top}/plugin.py", "x")


def _damage(path: Path, fault: str) -> None:
    """Change bytes of the finished file: flags, sizes, or its end."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first entry of the central directory
    match fault:
        case "encrypted":
            content[entry + 8] |= 1
        case "lying-size":
            content[entry + 24 : entry + 28] = (7).to_bytes(4, "little")
        case "truncated":
            del content[len(content) // 2 :]
        case _:
            return
    path.write_bytes(content)
