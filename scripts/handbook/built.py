"""``python -m handbook.built SITE``: finish a site that was built, and complain of what is wrong with it.

No request may leave a page, and every link has to lead somewhere, to a heading too.
"""

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

SHIM = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim"[^>]*>')
"""What the generator fetches from elsewhere, so that a page that is opened from a disk can be searched."""
FOREIGN = re.compile(
    r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc="((?:https?:)?//[^"]*)"'
    r'|<link\b(?![^>]*rel="canonical")[^>]*\bhref="((?:https?:)?//[^"]*)"'
    r'|url\(["\']?((?:https?:)?//[^)"\']*)'
    r'|@import ["\']((?:https?:)?//[^"\']*)'
)
"""What a browser fetches from another host by itself."""
LINK = re.compile(r'<a\b[^>]*\bhref="(?![a-z]+:)([^"#?]*)(?:#([^"]*))?"')
ANCHOR = re.compile(r'\b(?:id|name)="([^"]+)"')


def finish(site: Path) -> None:
    """Put our own script in the place of the foreign one."""
    for path in site.rglob("*.html"):
        ours = os.path.relpath(site / "handbook.js", path.parent)
        text = path.read_text(encoding="utf-8")
        path.write_text(SHIM.sub(f'<script src="{ours}">', text), encoding="utf-8")


def complaints(site: Path) -> Iterator[str]:
    """Requests to foreign hosts, and links that lead nowhere."""
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        name, text = path.relative_to(site), path.read_text(encoding="utf-8")
        yield from (f"{name}: fetches {''.join(found)}" for found in FOREIGN.findall(text))
        if path.suffix == ".html" and name != Path("404.html"):
            links = dict.fromkeys(LINK.findall(text))
            yield from (
                f"{name}: {link}#{to} leads nowhere" for link, to in links if not _leads(path, link, to)
            )


def _leads(page: Path, link: str, anchor: str) -> bool:
    target = Path(os.path.normpath(page.parent / unquote(link))) if link else page
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return False
    return not anchor or target.suffix != ".html" or unquote(anchor) in _anchors(target)


@cache
def _anchors(page: Path) -> frozenset[str]:
    return frozenset(ANCHOR.findall(page.read_text(encoding="utf-8")))


def main(site: Path) -> int:
    """Finish the site, print complaints; the exit code."""
    finish(site)
    found = list(complaints(site))
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
