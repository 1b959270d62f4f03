"""Unpacks an untrusted zip file of a submission. No torch.

Only plain files with the names that a submission may hold are unpacked, into one new folder. The
sizes that the archive states are not trusted: bytes are counted as they are written.
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
"""What a broken archive raises; ValueError where a name is not in its declared encoding."""
MAX_MEMBERS = 16
MAX_RATIO = 200
"""Largest compression ratio of a file of more than a block."""
BLOCK_BYTES = 1 << 20


def unpack_archive(archive: Path, into: Path) -> Path:
    """Unpack a submission below `into`; returns its folder.

    The archive holds the files themselves, or one folder with them. Raises BenchError where it
    breaks a rule.
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
        raise BenchError(f"{archive.name} is not a readable zip file: {error}.") from error
    return folder


def _members(packed: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    members = packed.infolist()
    if len(members) > MAX_MEMBERS:
        raise BenchError(
            f"{archive.name} holds {len(members)} members; at most {MAX_MEMBERS} are allowed."
        )
    seen: set[str] = set()
    for member in members:
        wrong = _why_refused(member)
        if not wrong and member.filename.casefold() in seen:
            wrong = "occurs twice"
        if wrong:
            raise BenchError(f"{archive.name}: {member.filename[:80]!r} {wrong}.")
        seen.add(member.filename.casefold())
    return members


def _is_plain(name: str) -> bool:
    """Whether a name is relative, printable ASCII, and means the same on every system."""
    parts = name.removesuffix("/").split("/")
    odd = "\\" in name or ":" in name or ".." in parts or "" in parts
    return name.isascii() and name.isprintable() and not odd


def _why_refused(member: zipfile.ZipInfo) -> str:
    """Which rule a member of the archive breaks, as the end of a sentence; empty for none."""
    parts = member.filename.removesuffix("/").split("/")
    if not _is_plain(member.filename):
        return "is not a plain relative name"
    mode = stat.S_IFMT(member.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device; a submission holds plain files only"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.is_dir():
        return "" if len(parts) == 1 else "is a folder in a folder"
    if len(parts) > 2 or parts[-1] not in MAX_FILE_BYTES:
        return f"is not allowed; a submission may hold {', '.join(MAX_FILE_BYTES)}"
    if member.file_size > max(MAX_RATIO * member.compress_size, BLOCK_BYTES):
        return f"unpacks to {member.file_size} bytes from only {member.compress_size}"
    return ""


def _top(members: list[zipfile.ZipInfo], archive: Path) -> str:
    """The name of the submission's folder."""
    tops = {m.filename.split("/")[0] if "/" in m.filename else "" for m in members}
    if len(tops) != 1:
        raise BenchError(f"{archive.name} holds {len(tops)} folders; a submission is one folder.")
    return tops.pop() or archive.stem


def _stream(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Unpack a member, counting the bytes that are written."""
    left = min(MAX_FILE_BYTES[path.name], max(MAX_RATIO * member.compress_size, BLOCK_BYTES))
    with packed.open(member) as source, path.open("xb") as target:
        while block := source.read(BLOCK_BYTES):
            left -= len(block)
            if left < 0:
                raise BenchError(f"{member.filename!r} unpacks to more bytes than allowed.")
            target.write(block)
