"""A hook of mkdocs: what pages link to outside of docs/ (examples, results, tests) becomes part of
the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"\]\(\.\./([\w./-]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    linked = {
        path for page in files.documentation_pages() for path in _LINK.findall(page.content_string)
    }
    for path in sorted(linked):
        source = ROOT / path
        if not source.is_file():
            raise FileNotFoundError(f"a page links to {path}, which is not there")
        name = f"files/{path}".replace(".md", ".md.txt")  # as it is, not as a page of the site
        files.append(File.generated(config, name, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return _LINK.sub(lambda link: "](files/" + link[1].replace(".md", ".md.txt"), markdown)
