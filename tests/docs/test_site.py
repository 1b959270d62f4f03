"""The site builds without warnings, is complete and loads nothing from other hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bench.plugin
from tests.docs.pages import DOCS, ROOT
from tests.docs.walk import command_names
from tests.test_structure import ORDER


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    for page in DOCS.rglob("*.md"):
        target = page.relative_to(DOCS).with_suffix(".html").as_posix()
        assert (site / target).is_file()
        assert target == "index.html" or f'href="{target}' in start, target


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    tags = r"<(?:script|img|iframe|link|source)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^\"']+"
    for page in site.rglob("*.html"):
        loaded = re.findall(tags, page.read_text())
        assert [tag for tag in loaded if 'rel="canonical"' not in tag] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_reference_names_everything_that_plugins_import(site: Path) -> None:
    page = (site / "reference" / "plugin.html").read_text()
    for name in bench.plugin.__all__:
        if name != "Fraction":  # of the standard library
            assert re.search(rf'id="[\w.]*\b{name}"', page), name


def test_the_reference_names_every_command(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "reference" / "cli.html").read_text())
    for name in command_names():
        assert f"bench {name}" in page, name


def test_local_links_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#:?]+)[^":]*"', page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(site)} links to {link}"


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "submissions/README.md"):
        for link in re.findall(r"\]\(([^)#:\s]+)\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page} links to {link}"


def test_new_names_of_the_changelog_exist() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    table = text.split("| 0.1.0 | 0.2.0 |\n|---|---|\n")[1].split("\n\n")[0]
    for line in table.splitlines():
        for name in re.findall(r"`([\w.]+)`", line.split("|")[2]):
            owner, _, member = name.partition(".")
            assert owner in bench.plugin.__all__, name
            value = getattr(bench.plugin, owner)
            known = {*dir(value), *getattr(value, "__annotations__", {})}
            assert not member or member in known, name


def test_the_architecture_page_lists_the_packages_in_order() -> None:
    text = (DOCS / "architecture.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == ORDER


def test_the_architecture_picture_names_packages_that_exist() -> None:
    picture = (DOCS / "architecture.svg").read_text()
    for names in re.findall(r'class="t"[^>]*>([^<]+)<', picture):
        for name in names.split(", "):
            assert name in ORDER or (ROOT / name).is_dir(), name


def test_the_reference_names_every_environment_variable() -> None:
    page = (DOCS / "reference" / "cli.md").read_text()
    files = [
        path for top in ("bench", "plugins", "leaderboard") for path in ROOT.glob(f"{top}/**/*.py")
    ]
    used = {name for path in files for name in re.findall(r"\bBENCH_[A-Z_]+\b", path.read_text())}
    assert used == set(re.findall(r"`(BENCH_[A-Z_]+)`", page))
