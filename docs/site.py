"""Copies the pages to build/docs, the source of the site, and writes build/mkdocs.yml. `make docs` runs this first.

In these copies, links to files outside docs/ lead to the repository, whose URL is in MUST_REPOSITORY or in GitHub's
variables for workflows. Without a URL, such a link becomes its text.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+)([^)#]+)(#[^)]*)?\)")


def repository() -> str:
    if "MUST_REPOSITORY" in os.environ:
        return os.environ["MUST_REPOSITORY"].rstrip("/")
    name = os.environ.get("GITHUB_REPOSITORY")
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else ""


def main() -> None:
    docs = BUILD / "docs"
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    dead: list[str] = []
    for page in docs.rglob("*.md"):
        source = ROOT / "docs" / page.relative_to(docs)
        page.write_text(LINK.sub(partial(out, source=source, dead=dead), page.read_text()))
    config = (ROOT / "mkdocs.yml").read_text()
    config += f"repo_url: {repository()}\nrepo_name: {repository().split('/')[-1]}\n" if repository() else ""
    (BUILD / "mkdocs.yml").write_text(config.replace("site_dir: build/site", "site_dir: site"))
    if dead:
        sys.exit("\n".join(dead))


def out(match: re.Match[str], source: Path, dead: list[str]) -> str:
    """The link for the site. If the target does not exist, adds a message to `dead`."""
    text, up, path, anchor = match.groups()
    target = (source.parent / up / path).resolve()
    if target.is_relative_to(ROOT / "docs"):
        return match[0]
    repository_path = target.relative_to(ROOT).as_posix()
    if not target.exists():
        dead.append(f"{source.relative_to(ROOT)}: no such file: {repository_path}")
    kind = "tree" if target.is_dir() else "blob"
    return f"[{text}]({repository()}/{kind}/main/{repository_path}{anchor or ''})" if repository() else text


if __name__ == "__main__":
    main()
