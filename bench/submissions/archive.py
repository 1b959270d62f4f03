"""A packed submission, opened without trusting a word of it. No torch.

Only plain files with the names that an entry may hold come out, streamed under hard limits: what
the archive says of sizes is not believed, and nothing is written outside the new folder.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from bench.core.errors import BenchError
from bench.registry.submission import MAX_FILE_BYTES

UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError,
    ValueError,
)  # fmt: skip
"""What a broken archive raises; ValueError where a name is not in the encoding it claims."""
MEMBERS = 16
RATIO = 200
BLOCK = 1 << 20


def unpack_archive(archive: Path, into: Path) -> Path:
    """The entry's folder, unpacked below `into`; BenchError names the rule that is broken.

    The archive holds the files themselves, or one folder that holds them.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = _members(packed, archive)
            folder = into / _top(members, archive)
            folder.mkdir(parents=True)
            for member in members:
                if not member.is_dir():
                    _stream(packed, member, folder / PurePosixPath(member.filename).name)
    except UNREADABLE as error:
        raise BenchError(f"{archive.name} is no zip file that can be read: {error}.") from error
    return folder


def _members(packed: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    members = packed.infolist()
    if len(members) > MEMBERS:
        raise BenchError(f"{archive.name} holds {len(members)} members; at most {MEMBERS} are due.")
    seen: set[str] = set()
    for member in members:
        wrong = _wrong(member)
        if not wrong and member.filename.casefold() in seen:
            wrong = "is there twice"
        if wrong:
            raise BenchError(f"{archive.name}: {member.filename[:80]!r} {wrong}.")
        seen.add(member.filename.casefold())
    return members


def _wrong(member: zipfile.ZipInfo) -> str:
    """Which rule a member breaks; empty when none."""
    name = member.filename
    parts = name.removesuffix("/").split("/")
    plain = name.isascii() and name.isprintable()
    if not plain or "\\" in name or ".." in parts or "" in parts or ":" in name:
        return "is no plain relative name"
    mode = stat.S_IFMT(member.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device; an entry holds plain files only"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.is_dir():
        return "" if len(parts) == 1 else "is a folder in a folder"
    if len(parts) > 2 or parts[-1] not in MAX_FILE_BYTES:
        return f"has no place in an entry, which may hold {', '.join(MAX_FILE_BYTES)}"
    if member.file_size > max(RATIO * member.compress_size, BLOCK):
        return f"unpacks to {member.file_size} bytes from {member.compress_size}"
    return ""


def _top(members: list[zipfile.ZipInfo], archive: Path) -> str:
    """The name of the entry's folder."""
    tops = {m.filename.split("/")[0] if "/" in m.filename else "" for m in members}
    if len(tops) != 1:
        raise BenchError(f"{archive.name} holds {len(tops)} folders; one entry is one folder.")
    return tops.pop() or archive.stem


def _stream(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Copy a member, counting what really comes out."""
    left = min(MAX_FILE_BYTES[path.name], max(RATIO * member.compress_size, BLOCK))
    with packed.open(member) as source, path.open("xb") as target:
        while block := source.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise BenchError(f"{member.filename!r} unpacks to more than it may.")
            target.write(block)
