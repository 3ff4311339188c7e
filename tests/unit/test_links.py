"""Links of the documentation lead to files of the project, and the reference says what the code says."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"


def tracked() -> set[Path]:
    """The files that a clone has."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60
    )
    return {PROJECT / name for name in done.stdout.split("\0") if name}


def links(page: Path) -> list[tuple[str, str]]:
    """Path and anchor of each link to another file or to a place of this one; examples of code have none."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(\s*(?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\s*\)", text)
    return [(path, anchor) for path, anchor in found if path or anchor]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


PAGES = sorted(page for page in tracked() if page.suffix == ".md" and (page.parent == PROJECT or DOCS in page.parents))


def test_the_pages_are_found() -> None:
    assert {PROJECT / "README.md", DOCS / "index.md", DOCS / "how-to" / "kafka.md"} <= set(PAGES)
    assert sum(len(links(page)) for page in PAGES) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_leads_to_a_file_of_a_clone_and_to_a_heading_in_it(page: Path) -> None:
    files = tracked()
    folders = {folder for file in files for folder in file.parents}
    broken = []
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        if target not in files | folders:
            broken.append(path)
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            broken.append(f"{path}#{anchor}")
    assert broken == []


def test_the_pages_of_the_reference_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    written = importlib.import_module("generate").pages()
    assert len(written) == 6
    old = [page.name for page, text in written.items() if not page.exists() or page.read_text(encoding="utf-8") != text]
    assert old == [], "run 'make reference' and commit what it writes"
    assert written.keys() <= tracked()
