"""Every block of the documentation runs as it stands, as those of README.md do, and every page is in the navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.test_readme import BLOCK, INLINE, ROOT, Block, check_parses, folder
from tests.test_readme import test_block_runs as run_block

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GENERATED = {"environments/index.md", "agents/index.md", "leaderboard.md"}
__all__ = ["folder"]


def blocks() -> list[object]:
    """Python runs by `make test-slow`, but for the first page's; the shell's lines are parsed, or run where marked."""
    found = []
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text())):
            block = Block.of(match)
            slow = "parse" not in block.flags and (page.name != "index.md" or "slow" in block.flags)
            found.append(pytest.param(block, id=f"{page.name} {number}", marks=[pytest.mark.slow] if slow else []))
    return found


@pytest.mark.parametrize("block", blocks())
def test_block_of_a_page_runs(block: Block, folder: Path) -> None:
    run_block(block, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_inline_commands_of_a_page_are_commands(page: Path) -> None:
    for command in INLINE.findall(page.read_text()):
        if command.count(" ") > 1:      # of two words it is the command's name
            check_parses(command)


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().split("nav:")[1]))
    assert listed == {str(page.relative_to(DOCS)) for page in PAGES} | GENERATED


def test_the_citation_is_of_this_version() -> None:
    from regenv import __version__

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and {"message", "title", "authors", "cff-version"} <= set(cited)
