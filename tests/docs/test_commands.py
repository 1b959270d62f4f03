"""Every command of README and documentation runs, page by page, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.data.datasets import data_folder
from tests.docs import walk
from tests.docs.pages import DOCS, ROOT, blocks, pages
from tests.docs.walk import Reader

SLOW = {
    "README.md",
    "docs/howto/image-folders.md",
    "docs/howto/real-data.md",
    "docs/howto/reproduce.md",
    "docs/howto/several-sets.md",
    "docs/howto/workers.md",
}
"""Pages that take longer than ten seconds."""
ELSEWHERE = {
    "docs/tutorials/checkpoint.md": "test_checkpoint",
    "docs/tutorials/evaluate-a-model.md": "test_tutorials",
    "docs/tutorials/first-defense.md": "test_tutorials",
    "docs/tutorials/first-attack.md": "test_tutorials",
    "docs/tutorials/run-a-challenge.md": "test_tutorials",
    "docs/howto/postgresql.md": "test_postgresql",
}
"""Pages that a test of another file follows: they need more than an empty folder."""


def followed() -> list[object]:
    names = [page for page in pages() if page not in ELSEWHERE]
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [], id=name)
        for name in names
    ]


@pytest.mark.parametrize("page", followed())
def test_the_commands_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "docs/howto/real-data.md" and not (data_folder() / "MNIST").is_dir():
        pytest.skip("no MNIST in BENCH_DATA")
    Reader(tmp_path, monkeypatch).follow(page)


def test_pages_that_are_followed_elsewhere_exist() -> None:
    for page, module in ELSEWHERE.items():
        assert page in pages()
        assert (ROOT / "tests" / "docs" / f"{module}.py").is_file()


def test_every_exception_is_needed() -> None:
    used = {walk.exception_of(command) for _, command in walk.commands(pages())}
    assert used - {None} == set(walk.EXCEPTIONS)


def test_every_shell_command_is_in_a_block_with_a_language() -> None:
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        text = path.read_text()
        assert not re.search(r"^```\n[^`]*^(\$ )?(bench|uv|python) ", text, re.MULTILINE), path


def test_options_named_in_the_text_exist() -> None:
    known = walk.options([]) | walk.FOREIGN_OPTIONS | {"--help"}
    for command in walk.command_names():
        known |= walk.options(command.split())
    for page in pages():
        for command in re.findall(r"`bench ([a-z]+)[ `]", (ROOT / page).read_text()):
            walk.options([command])
        for option in re.findall(r"`(--[a-z-]+)[ `]", (ROOT / page).read_text()):
            assert option in known, f"{page} names {option}"


def test_files_of_a_page_are_used_by_it() -> None:
    for page in pages():
        shown = blocks(page)
        text = "\n".join(block.text for block in shown)
        for block in shown:
            if block.file.endswith(".py") and "/" not in block.file:
                assert f"python {block.file}" in text, f"{page} never runs {block.file}"
