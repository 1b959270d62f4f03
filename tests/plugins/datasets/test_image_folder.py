"""Image folders: which files are images of which class, how each is decoded, what is refused."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.contract.check import CheckOutcome
from bench.contract.runner import run_checks
from bench.core.errors import UnavailableError
from bench.data import datasets
from bench.registry.registry import Registry
from plugins.datasets import image_folder
from plugins.datasets._folder_index import folder_index
from plugins.datasets._image_file import FORMATS, centre_square, read_rgb

SETTINGS = ("FOLDER", "SIZE", "EXAMPLES", "DIGEST")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(f"BENCH_IMAGE_{name}", raising=False)


def save(path: Path, level: int = 9, size: tuple[int, int] = (16, 16)) -> Path:
    """Write an image of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six images of two classes, each of one grey level."""
    root = tmp_path / "photographs"
    for name, levels in (("dogs", (10, 20, 30)), ("cats", (210, 220, 230))):
        for level in levels:
            save(root / name / f"{level}.png", level, (48, 32))
    return root


def levels(root: Path) -> list[tuple[int, int]]:
    """(label, grey level) of each image that is read, sorted."""
    images = datasets.load_dataset(image_folder.image_folder(root, size=14)).test
    return sorted(zip(images.labels.tolist(), images.images[:, 0, 0, 0].tolist(), strict=True))


SIX = [(0, 210), (0, 220), (0, 230), (1, 10), (1, 20), (1, 30)]


def test_an_image_folder_is_a_data_set(photographs: Path) -> None:
    dataset = image_folder.image_folder(photographs, size=14, examples=4)
    images = datasets.load_dataset(dataset)
    assert dataset.classes == ("cats", "dogs")
    assert dataset.test_size == 4
    assert images.test.images.shape == (4, 3, 14, 14)
    assert sorted(images.test.labels.tolist()) == [0, 0, 1, 1]
    assert levels(photographs) == SIX


def test_the_centre_of_an_image_is_kept(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    picture = np.zeros((16, 48, 3), dtype=np.uint8)
    picture[:, 16:32] = 255
    Image.fromarray(picture).save(tmp_path / "one" / "a.png")
    images = datasets.load_dataset(image_folder.image_folder(tmp_path, size=14)).test.images
    assert (images == 255).all()


def test_images_of_different_sizes_become_squares_of_one_size(tmp_path: Path) -> None:
    for index, size in enumerate([(16, 16), (5, 3), (200, 90), (1, 1)]):
        save(tmp_path / "a" / f"{index}.png", 10 + index, size)
    assert levels(tmp_path) == [(0, 10), (0, 11), (0, 12), (0, 13)]


# --- which files are images ------------------------------------------------------------------

HIDDEN = [
    ".ipynb_checkpoints/0.png", "__MACOSX/dogs/._10.png", "@eaDir/10.png", "$RECYCLE.BIN/a.png",
    "System Volume Information/a.png", ".git/a.png", "dogs/._10.png", "dogs/.10.png.swp",
    "dogs/.ipynb_checkpoints/10.png", "dogs/@eaDir/thumb.jpg",
]  # fmt: skip
NO_IMAGES = [
    "dogs/Thumbs.db", "dogs/.DS_Store", "cats/desktop.ini", "README", "labels.txt", "dogs/10.json",
]  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_and_system_entries_are_no_class_and_no_image(photographs: Path, name: str) -> None:
    save((photographs / name).with_suffix(".png"), 77).rename(_parent_made(photographs / name))
    assert folder_index(photographs).classes == ("cats", "dogs")
    assert levels(photographs) == SIX


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("name", NO_IMAGES)
def test_files_that_are_no_images_are_left_out(photographs: Path, name: str) -> None:
    (photographs / name).write_text("text")
    assert levels(photographs) == SIX


def test_the_summary_names_the_suffixes_that_were_left_out(photographs: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.txt"):
        (photographs / "dogs" / name).write_text("x")
    summary = image_folder.image_folder(photographs).summary
    assert summary.startswith("6 images of 2 classes in ")
    assert summary.endswith("; other files were left out (.heic, .txt).")


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.JpG", "c.tiff", "d.webp", "e.BMP", "f.gif"):
        save(tmp_path / "one" / name, 100)
    assert len(levels(tmp_path)) == 6


def link_file(root: Path) -> Path:
    (root / "dogs" / "link.png").symlink_to(root / "cats" / "210.png")
    return root / "dogs" / "link.png"


def link_outside(root: Path) -> Path:
    (root / "dogs" / "link.png").symlink_to(save(root.parent / "elsewhere" / "a.png"))
    return root / "dogs" / "link.png"


def link_to_parent(root: Path) -> Path:
    (root / "dogs" / "up").symlink_to(root)
    return root / "dogs" / "up"


def link_class(root: Path) -> Path:
    (root / "wolves").symlink_to(root / "dogs")
    return root / "wolves"


def link_to_nothing(root: Path) -> Path:
    (root / "dogs" / "gone.png").symlink_to("nothing")
    return root / "dogs" / "gone.png"


def link_to_itself(root: Path) -> Path:
    (root / "dogs" / "self.png").symlink_to("self.png")
    return root / "dogs" / "self.png"


@pytest.mark.parametrize(
    "make",
    [link_file, link_outside, link_to_parent, link_class, link_to_nothing, link_to_itself],
)
def test_symbolic_links_are_refused_by_name(
    photographs: Path, make: Callable[[Path], Path]
) -> None:
    place = make(photographs)
    with pytest.raises(ValueError, match=re.escape(f"{place} is a symbolic link")):
        folder_index(photographs)


def test_the_folder_itself_may_be_a_link(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photographs)
    assert levels(tmp_path / "link") == SIX


def test_a_hidden_link_is_left_out(photographs: Path) -> None:
    (photographs / ".cache").symlink_to(photographs)
    assert levels(photographs) == SIX


def test_a_named_pipe_is_refused_and_not_opened(photographs: Path) -> None:
    os.mkfifo(photographs / "dogs" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is no regular file"):
        folder_index(photographs)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty class": (lambda root: (root / "birds").mkdir(), "class folder .*birds has no image"),
    "class without images": (
        lambda root: _parent_made(root / "birds" / "a.txt").write_text("x"),
        "class folder .*birds has no image",
    ),
    "class with hidden images alone": (
        lambda root: save(root / "birds" / "._1.png"), "class folder .*birds has no image",
    ),
    "image beside classes": (
        lambda root: save(root / "a.png"), r"a\.png lies beside the class folders",
    ),
    "nested": (lambda root: save(root / "dogs" / "more" / "1.png"), "dogs/more is a folder inside"),
    "case": (lambda root: save(root / "Dogs" / "1.png"), "'Dogs' and 'dogs' .* ignore case"),
    "sharp s": (
        lambda root: (save(root / "straße" / "1.png"), save(root / "STRASSE" / "1.png")),
        "'STRASSE' and 'straße' .* ignore case",
    ),
    "normal forms": (
        lambda root: (save(root / "caf\u00e9" / "1.png"), save(root / "cafe\u0301" / "1.png")),
        "have the same name",
    ),
    "line feed": (lambda root: save(root / "a\nb" / "1.png"), r"'a\\nb' .* cannot be printed"),
    "no UTF-8": (
        lambda root: save(root / "dogs" / "1.png").rename(root / "dogs" / "\udcff.png"),
        r"'\\udcff\.png' .* cannot be printed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_not_in_order_is_refused_by_name(photographs: Path, case: str) -> None:
    change, sentence = BROKEN[case]
    change(photographs)
    with pytest.raises(ValueError, match=sentence):
        folder_index(photographs)


def test_the_order_is_that_of_the_names_whatever_the_file_system_says(tmp_path: Path) -> None:
    """The names of both forms of é sort alike; upper case comes before lower case, as code points
    do; the order of creation and the locale are not used."""
    names = ["zebra", "Zoo", "a b", "ab", "caf\u00e9s", "cafe\u0301", "Äpfel", "日本", "10", "9"]
    for name in names:
        for file in ("b.png", "a.png", "A.png", "10.png", "9.png"):
            save(tmp_path / name / file, size=(1, 1))
    found = folder_index(tmp_path)
    classes = ("10", "9", "Zoo", "a b", "ab", "caf\u00e9", "caf\u00e9s", "zebra", "Äpfel", "日本")
    assert found.classes == classes
    assert [Path(f).name for f in found.files[:5]] == [
        "10.png", "9.png", "A.png", "a.png", "b.png",
    ]  # fmt: skip
    assert found.files[25].startswith("cafe\u0301/")
    assert found.labels == tuple(np.repeat(np.arange(10), 5).tolist())


# --- how an image is decoded -----------------------------------------------------------------


def png(path: Path, bits: int, colour: int, row: bytes, width: int, *chunks: bytes) -> Path:
    """Write a PNG of one row, with pixels exactly as given."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + code

    head = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    extra = b"".join(chunk(c[:4], c[4:]) for c in chunks)
    body = chunk(b"IDAT", zlib.compress(b"\0" + row))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    path.write_bytes(start + extra + body + chunk(b"IEND", b""))
    return path


def pixels(path: Path) -> list[list[int]]:
    """The RGB pixels of the first row."""
    array = np.asarray(read_rgb(path))
    assert array.dtype == np.uint8
    found: list[list[int]] = array[0].tolist()
    return found


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


SIXTEEN = [0, 255, 256, 32768, 65535]


def test_16_bit_grey_keeps_its_upper_8_bits(tmp_path: Path) -> None:
    big = np.array(SIXTEEN, dtype=">u2").tobytes()
    assert pixels(png(tmp_path / "a.png", 16, 0, big, 5)) == grey(0, 0, 1, 128, 255)
    array = np.array([SIXTEEN], dtype=np.uint16)
    Image.fromarray(array).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif") == grey(0, 0, 1, 128, 255)
    Image.frombytes("I;16B", (5, 1), big).save(tmp_path / "b.tif")
    assert pixels(tmp_path / "b.tif") == grey(0, 0, 1, 128, 255)


def test_16_bit_colour_keeps_its_upper_8_bits(tmp_path: Path) -> None:
    row = np.array([0, 511, 65535, 256, 32768, 767], dtype=">u2").tobytes()
    assert pixels(png(tmp_path / "a.png", 16, 2, row, 2)) == [[0, 1, 255], [1, 128, 2]]


def test_grey_levels_of_1_2_4_and_8_bits_use_the_whole_range(tmp_path: Path) -> None:
    assert pixels(png(tmp_path / "1.png", 1, 0, b"\x40", 3)) == grey(0, 255, 0)
    assert pixels(png(tmp_path / "2.png", 2, 0, b"\x1b", 4)) == grey(0, 85, 170, 255)
    assert pixels(png(tmp_path / "4.png", 4, 0, b"\x1f", 2)) == grey(17, 255)
    assert pixels(png(tmp_path / "8.png", 8, 0, b"\x01\xfe", 2)) == grey(1, 254)
    Image.frombytes("1", (3, 1), b"\xa0").save(tmp_path / "1.tif")
    assert pixels(tmp_path / "1.tif") == grey(255, 0, 255)


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    palette = b"PLTE" + bytes([1, 2, 3, 250, 251, 252])
    assert pixels(png(tmp_path / "a.png", 8, 3, b"\1\0", 2, palette)) == [
        [250, 251, 252], [1, 2, 3],
    ]  # fmt: skip
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([9, 8, 7, 200, 100, 0])
    image.save(tmp_path / "a.gif")
    assert pixels(tmp_path / "a.gif") == [[9, 8, 7], [200, 100, 0]]


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    assert pixels(png(tmp_path / "a.png", 8, 6, b"\1\2\3\xff", 1)) == [[1, 2, 3]]
    assert pixels(png(tmp_path / "b.png", 8, 4, b"\7\xff", 1)) == grey(7)
    palette = b"PLTE" + bytes([1, 2, 3, 4, 5, 6])
    row = b"\1\1"
    assert pixels(png(tmp_path / "c.png", 8, 3, row, 2, palette, b"tRNS\0\xff")) == [[4, 5, 6]] * 2
    assert pixels(png(tmp_path / "d.png", 8, 2, b"\1\2\3", 1, b"tRNS\0\1\0\2\0\4")) == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("colour", "bits", "row", "chunks"),
    [
        (6, 8, b"\1\2\3\xfe", ()),
        (4, 8, b"\7\0", ()),
        (3, 8, b"\0", (b"PLTE\1\2\3", b"tRNS\0")),
        (2, 8, b"\1\2\3", (b"tRNS\0\1\0\2\0\3",)),
        (0, 8, b"\5", (b"tRNS\0\5",)),
        (0, 16, b"\5\5", (b"tRNS\5\5",)),
        (6, 16, b"\1\1\2\2\3\3\xfe\xff", ()),
    ],
)
def test_transparent_pixels_are_refused_by_name(
    tmp_path: Path, colour: int, bits: int, row: bytes, chunks: tuple[bytes, ...]
) -> None:
    path = png(tmp_path / "a.png", bits, colour, row, 1, *chunks)
    with pytest.raises(ValueError, match=r"a\.png has transparent pixels"):
        read_rgb(path)


def test_cmyk_is_converted_without_a_profile(tmp_path: Path) -> None:
    image = Image.new("CMYK", (1, 1), (10, 20, 30, 40))
    expected = [round((255 - c) * (255 - 40) / 255) for c in (10, 20, 30)]
    image.save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif") == [expected] == [[207, 198, 190]]
    image.resize((16, 16)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.asarray(pixels(tmp_path / "a.jpg")) - expected).max() <= 2


def test_ycbcr_is_converted(tmp_path: Path) -> None:
    Image.new("YCbCr", (1, 1), (100, 128, 128)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif") == grey(100)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_a_fixed_range_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif has Pillow's mode {mode}"):
        read_rgb(tmp_path / "a.tif")


# Where each corner of [[1, 2], [3, 4]] must be stored, so that it is shown upright.
STORED = {
    1: [[1, 2], [3, 4]], 2: [[2, 1], [4, 3]], 3: [[4, 3], [2, 1]], 4: [[3, 4], [1, 2]],
    5: [[1, 3], [2, 4]], 6: [[2, 4], [1, 3]], 7: [[4, 2], [3, 1]], 8: [[3, 1], [4, 2]],
    0: [[1, 2], [3, 4]], 9: [[1, 2], [3, 4]],
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.kron(np.array(STORED[orientation]), np.ones((8, 8))).astype(np.uint8) * 50
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    shown = np.asarray(read_rgb(tmp_path / f"a.{suffix}"))[4::8, 4::8, 0]
    assert np.abs(shown - 50.0 * np.array([[1, 2], [3, 4]])).max() <= 2


def test_the_orientation_is_applied_before_the_crop(tmp_path: Path) -> None:
    stored = np.zeros((48, 16), dtype=np.uint8)
    stored[16:32] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert read_rgb(tmp_path / "a.png").size == (48, 16)
    assert (centre_square(tmp_path, read_rgb(tmp_path / "a.png"), 14) == 200).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif", "mpo"])
def test_the_first_of_several_frames_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (40, 90, 200)]
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert pixels(path)[0] == [40, 40, 40]


def test_a_jpeg_named_png_is_read_by_its_content(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 60).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0] == [60, 60, 60]


def test_postscript_named_png_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is no image in a known format"):
        read_rgb(tmp_path / "a.png")
    assert "EPS" not in FORMATS


def truncated(path: Path) -> None:
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:3000])


def damaged_jpeg(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-300])


def bad_checksum(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


def bomb(side: int) -> Callable[[Path], None]:
    """A PNG that declares side x side pixels; it has one row of them."""

    def write(path: Path) -> None:
        png(path, 1, 0, bytes(-(-side // 8)), side)
        content = bytearray(path.read_bytes())
        content[20:24] = struct.pack(">I", side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)

    return write


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated PNG": (truncated, "cannot be decoded"),
    "truncated JPEG": (damaged_jpeg, "cannot be decoded"),
    "checksum": (bad_checksum, "cannot be decoded|is no image"),
    "empty": (lambda path: path.write_bytes(b""), "is empty; remove it or copy it again"),
    "text": (lambda path: path.write_text("hello"), "is no image in a known format"),
    "web page": (lambda path: path.write_text("<html>404</html>"), "is no image in a known format"),
    "20000 x 20000": (bomb(20000), r"too many pixels .*400000000 pixels.* scale it down"),
    "10000 x 10000": (bomb(10000), r"too many pixels .*100000000 pixels.* scale it down"),
    "a line": (
        lambda path: Image.new("1", (1, 60000)).save(path, format="PNG"),
        r"is 1 x 60000 pixels; scaled to a shorter side of 256",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_image_that_cannot_be_read_is_named_in_one_sentence(
    photographs: Path, case: str
) -> None:
    write, sentence = UNREADABLE[case]
    write(photographs / "dogs" / "bad one.png")
    dataset = image_folder.image_folder(photographs)
    with pytest.raises(UnavailableError, match=sentence) as caught:
        datasets.load_dataset(dataset)
    assert str(photographs / "dogs" / "bad one.png") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_that_is_removed_after_the_listing_is_named(photographs: Path) -> None:
    dataset = image_folder.image_folder(photographs)
    (photographs / "dogs" / "20.png").unlink()
    with pytest.raises(UnavailableError, match=r"20\.png"):
        datasets.load_dataset(dataset)


# --- the variables ---------------------------------------------------------------------------


def test_the_image_folder_is_registered_when_the_variable_names_it(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(image_folder.bench_datasets()) == []
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", str(photographs))
    monkeypatch.setenv("BENCH_IMAGE_SIZE", "7")
    monkeypatch.setenv("BENCH_IMAGE_EXAMPLES", "5")
    (registered,) = image_folder.bench_datasets()
    assert (registered.shape, registered.test_size) == ((3, 7, 7), 5)
    assert not registered.problem


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SIZE", "abc"), ("SIZE", "0"), ("SIZE", "-5"), ("SIZE", "1e3"), ("SIZE", "4097"),
        ("SIZE", ""), ("SIZE", "٣"), ("EXAMPLES", "0"), ("EXAMPLES", "2.5"), ("DIGEST", "abc"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_a_reason_that_every_command_states(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", str(photographs))
    monkeypatch.setenv(f"BENCH_IMAGE_{variable}", text)
    (registered,) = image_folder.bench_datasets()
    assert registered.problem.startswith(f"BENCH_IMAGE_{variable} is {text!r}; set it to ")
    with pytest.raises(UnavailableError, match=f"BENCH_IMAGE_{variable} is"):
        datasets.first_examples(registered, 10)


@pytest.mark.parametrize("case", ["missing", "a file", "no classes", *BROKEN])
def test_a_broken_folder_is_never_an_unknown_data_set(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    root = photographs
    if case in BROKEN:
        BROKEN[case][0](root)
    else:
        root = root / {"missing": "nothing", "a file": "dogs/10.png", "no classes": "dogs"}[case]
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", str(root))
    registry = Registry.without_submissions()
    assert registry.problems == []
    dataset = registry.find("dataset", "image-folder").value
    assert dataset.problem == dataset.summary
    with pytest.raises(UnavailableError, match=re.escape(dataset.problem)):
        datasets.load_dataset(dataset)
    results = run_checks("image-folder", registry)
    assert [r.check for r in results if r.outcome is CheckOutcome.FAIL] == ["images-can-be-read"]


def test_the_checks_of_a_folder_in_order_pass(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", str(photographs))
    registry = Registry.without_submissions()
    for name in ("image-folder", "folder-linf"):
        results = run_checks(name, registry)
        assert [r for r in results if r.outcome is CheckOutcome.FAIL] == []
        assert any(r.outcome is CheckOutcome.PASS for r in results)


def test_a_declared_digest_is_compared(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_IMAGE_FOLDER", str(photographs))
    monkeypatch.setenv("BENCH_IMAGE_SIZE", "14")
    (free,) = image_folder.bench_datasets()
    digest = datasets.first_examples(free, 6).digest
    monkeypatch.setenv("BENCH_IMAGE_DIGEST", digest)
    (pinned,) = image_folder.bench_datasets()
    assert datasets.first_examples(pinned, 6).digest == digest
    save(photographs / "dogs" / "10.png", 11)
    (changed,) = image_folder.bench_datasets()
    with pytest.raises(UnavailableError, match=f"expected {digest}: restore the files"):
        datasets.load_dataset(changed)


def test_listing_a_folder_decodes_nothing(photographs: Path) -> None:
    (photographs / "dogs" / "bad.png").write_text("text")
    assert len(folder_index(photographs).files) == 7
