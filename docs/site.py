"""Hooks of MkDocs: the pages of the root folder belong to the site, where all pages lie in one folder."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md"} | {f"{name}.md": f"{name}.md" for name in (
    "REPRODUCTION", "CONTRIBUTING", "SECURITY", "CHANGELOG")}  # fmt: skip


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    files.append(File.generated(config, "CITATION.cff", content=citation))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links between the two folders stay inside the one folder of the site."""
    return re.sub(r"\]\((?:docs/|\.\./)", "](", markdown)
