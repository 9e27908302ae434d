"""The site's hook: links out of docs/ (to code, to the repository's own files) go to the repository, if it is known.

Where: MUST_REPOSITORY, or GitHub's own variables in its workflows. Unknown, such a link becomes its text. A file that
is not there is a warning, which fails a strict build.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOG = logging.getLogger("mkdocs.hooks.must")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+)([^)#]+)(#[^)]*)?\)")


def repository() -> str:
    if "MUST_REPOSITORY" in os.environ:
        return os.environ["MUST_REPOSITORY"].rstrip("/")
    name = os.environ.get("GITHUB_REPOSITORY")
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else ""


def on_config(config: Any) -> Any:
    if repository():
        config.repo_url, config.repo_name = repository(), repository().split("/")[-1]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = Path(page.file.src_path)

    def out(match: re.Match[str]) -> str:
        text, up, path, anchor = match.groups()
        target = (ROOT / "docs" / here.parent / up / path).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if not target.exists():
            LOG.warning("%s: no such file: %s", here, up + path)
        kind = "tree" if target.is_dir() else "blob"
        place = target.relative_to(ROOT).as_posix()
        return f"[{text}]({repository()}/{kind}/main/{place}{anchor or ''})" if repository() else text

    return LINK.sub(out, markdown)
