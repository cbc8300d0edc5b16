"""Widths of the pages of a site in Chromium: what leaves a phone's window, and a desktop's.

Each page is loaded into frames of these widths. A table or a line of code may be wider if it
scrolls in a box of its own; a page that is wider than its window, and anything else that leaves
it, are faults.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PHONE, DESKTOP = 390, 1280
NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "LRFAST_REQUIRE_BROWSER"
SECONDS = 300

# `article` ends the search for a box that scrolls: on a phone the theme lets the whole page scroll.
SCRIPT = """
<pre id="found"></pre><script>
const scrolls = (each) => ["auto", "scroll"].includes(getComputedStyle(each).overflowX);
function measure(page, width, view) {
  const root = view.document.documentElement, article = view.document.querySelector("article");
  const words = (each) => each.textContent.trim().slice(0, 40);
  const name = (each) => `<${each.tagName.toLowerCase()}> "${words(each)}"`;
  const faults = [];
  if (root.scrollWidth > width) faults.push(`is ${root.scrollWidth} pixels wide`);
  for (const each of (article || root).querySelectorAll("*")) {
    const place = each.getBoundingClientRect();
    if (!place.width || place.right <= width + 1) continue;
    let box = each.parentElement;
    while (box && box !== article && !scrolls(box)) box = box.parentElement;
    if (!box || box === article) faults.push(`${name(each)} ends at ${Math.round(place.right)}`);
  }
  return faults.slice(0, 3).map((fault) => `${page} at ${width} pixels: ${fault}`);
}
async function measureAll(pages, widths) {
  const found = [];
  for (const page of pages) for (const width of widths) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    frame.src = page;
    await new Promise((loaded) => { frame.onload = loaded; document.body.append(frame); });
    found.push(...measure(page.slice(BASE.length), width, frame.contentWindow));
    frame.remove();
  }
  document.getElementById("found").textContent = JSON.stringify(found);
}
const BASE = %(base)s;
measureAll(%(pages)s, %(widths)s);
</script>
"""


def find_browser() -> str | None:
    """Return the path of a Chromium that starts, or None: some are stubs that name a package."""
    for path in filter(None, map(shutil.which, NAMES)):
        if (
            subprocess.run([path, "--version"], capture_output=True, timeout=SECONDS).returncode
            == 0
        ):
            return path
    return None


def is_required() -> bool:
    """Whether the absence of a browser is a fault."""
    return os.environ.get(REQUIRED) == "1"


def too_wide(site: Path, browser: str, widths: tuple[int, ...] = (PHONE, DESKTOP)) -> list[str]:
    """Return what leaves its window, as "page at N pixels: what"."""
    base = f"{site.resolve().as_uri()}/"
    pages = [path.resolve().as_uri() for path in sorted(site.rglob("*.html"))]
    values = {"base": base, "pages": pages, "widths": widths}
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder, "frames.html")
        frames.write_text(SCRIPT % {name: json.dumps(value) for name, value in values.items()})
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--disable-dev-shm-usage"]  # small in containers
        command += [f"--user-data-dir={folder}/profile", "--allow-file-access-from-files"]
        command += ["--virtual-time-budget=100000000", frames.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    _, _, rest = done.stdout.partition('<pre id="found">')
    text = html.unescape(rest.partition("</pre>")[0])
    if not text:
        raise RuntimeError(f"{browser} measured nothing: {done.stderr[-2000:]}")
    found: list[str] = json.loads(text)
    return found
