"""The README's pictures of pages, made anew.

    python docs/screenshots.py

Needs the extra `test` and chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"

FIVE = ["dualpipe", "zb-v", "zb-h1", "interleaved-1f1b", "1f1b"]
V3 = ["dualpipe", "1f1b", "zb-h1"]

PAGES = {
    "dualpipe-8x20": (
        ["run", "--costs", "F=1,I=1,W=1,FB=3"],
        "() => timeline.select({what: 'bubble', run: 0, index: 0})",
    ),
    "compare": (["compare", "--costs", "F=1,I=1,W=1,FB=2.4,p2p=0.1", *(f"--schedule={name}" for name in FIVE)], None),
    "deepseek-v3-page": (
        ["run", str(EXAMPLES / "deepseek_v3.yaml")],
        "() => document.getElementById('median').click()",
    ),
    "deepseek-v3-compare": (
        [
            "compare",
            str(EXAMPLES / "deepseek_v3.yaml"),
            "--set",
            "overlap=within-slot",
            *(f"--schedule={name}" for name in V3),
        ],
        None,
    ),
    "measured": (
        ["run", "--schedule", "1f1b", "--costs", str(EXAMPLES / "operations.csv"), "--step", "100", "--worker", "0"],
        "() => timeline.select({what: 'slot', run: 1, index: 12})",
    ),
}
"""Each picture: the command that writes its page, and what is done there."""


def take(page: Page, name: str, arguments: list[str], action: str | None, folder: Path) -> None:
    """Write a page and save what its window shows, down to the panels under the lanes."""
    path = folder / f"{name}.html"
    subprocess.run(
        [sys.executable, "-m", "simpipe", *arguments, "--out", str(path)], check=True, stdout=subprocess.DEVNULL
    )
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    if action:
        page.evaluate(action)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    last = page.locator("#links" if page.is_visible("#links") else "#memory").bounding_box()
    assert last is not None
    height = last["y"] + last["height"] + 8
    page.screenshot(path=HERE / f"{name}.png", clip={"x": 0, "y": 0, "width": 1300, "height": height}, full_page=True)
    print(f"wrote docs/{name}.png")


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 860}, color_scheme="light")
        for name, (arguments, action) in PAGES.items():
            take(page, name, arguments, action, Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
