"""A real Chromium, and pages in it that note whatever goes wrong there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.tollgate_process import clean_environment

__all__ = ["Browser", "Page", "run_browser"]

BRIDGE_DIR = Path(__file__).parents[1] / "pages/browser"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPEN = """
const context = await browser.newContext({
  colorScheme: given.scheme, viewport: { width: given.width, height: 900 }, javaScriptEnabled: given.scripts,
  ignoreHTTPSErrors: true,
});
const page = await context.newPage();
const said = [];
page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
page.on("pageerror", (error) => said.push(String(error)));
page.on("requestfailed", (request) => said.push(`failed: ${request.url()}`));
const flying = new Set();
page.on("request", (request) => flying.add(request));
for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => flying.delete(request));
// Of what the page before had asked, nothing is told any more.
page.on("framenavigated", (frame) => frame === page.mainFrame() && flying.clear());
page.setDefaultTimeout(60000);
state[given.name] = { context, page, said, flying };
"""
_IN_PAGE = "const { context, page, said, flying } = state[given.name];"
_GO_ON = """
try {
  await page.clock.runFor(given.milliseconds);
} catch (error) {
  if (!String(error).includes("context was destroyed")) throw error;
}
// The clock of the page gives up on an answer long before a slow server has given it.
const until = Date.now() + 20000;
while (flying.size > 0 && Date.now() < until) await new Promise((wake) => { setTimeout(wake, 2); });
await page.waitForLoadState();
"""
_BARRIERS = """
await page.evaluate(axe);
const found = await page.evaluate(async () => (await globalThis.axe.run()).violations);
return found.map((each) => ({ id: each.id, impact: each.impact, where: each.nodes.map((node) => node.html) }));
"""


class Browser:
    """Chromium, driven over a pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._pages = 0

    def run(self, code: str, **given: Any) -> Any:
        """What an async function in JavaScript returns, given `browser`, `state`, `given` and `axe`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"code": code, "given": given}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    @contextmanager
    def page(self, *, scheme: str = "light", width: int = 1280, scripts: bool = True) -> Iterator[Page]:
        """A page with cookies and a cache of its own."""
        self._pages += 1
        page = Page(self, f"page-{self._pages}")
        self.run(_OPEN, name=page.name, scheme=scheme, width=width, scripts=scripts)
        try:
            yield page
        finally:
            page.run("await context.close();")


class Page:
    """One page: `run` has Playwright's `page` and `context`, and what was `said` on the console."""

    def __init__(self, browser: Browser, name: str) -> None:
        self._browser = browser
        self.name = name

    def run(self, code: str, **given: Any) -> Any:
        return self._browser.run(_IN_PAGE + code, name=self.name, **given)

    def go(self, url: str) -> int:
        """Open an address; return the status of its answer."""
        status: int = self.run("return (await page.goto(given.url)).status();", url=url)
        return status

    def text(self, selector: str) -> str:
        """What people read there."""
        text: str = self.run("return page.locator(given.at).first().innerText();", at=selector)
        return text

    def rows(self, selector: str) -> list[list[str]]:
        """The cells of the rows of a table's body."""
        code = (
            "return page.locator(given.at).evaluateAll(rows => rows.map(row => [...row.cells].map(c => c.innerText)));"
        )
        rows: list[list[str]] = self.run(code, at=f"{selector} tbody tr")
        return rows

    def value(self, expression: str) -> Any:
        """What an expression is worth in the page."""
        return self.run("return page.evaluate(given.expression);", expression=expression)

    def go_on(self, seconds: float) -> None:
        """Have so much pass on the clock that was installed, and what the page then asks be answered.

        The page may load itself anew: it is loaded when this returns.
        """
        self.run(_GO_ON, milliseconds=round(seconds * 1e3))

    def said(self) -> list[str]:
        """What the console has: errors of scripts, violations of the policy, what could not be loaded."""
        said: list[str] = self.run("return said;")
        return said

    def barriers(self) -> list[dict[str, Any]]:
        """What axe-core finds."""
        found: list[dict[str, Any]] = self.run(_BARRIERS)
        return found

    def picture(self, path: Path) -> None:
        """All of the page, as a PNG."""
        self.run("await page.screenshot({ path: given.path, fullPage: true });", path=str(path))


@contextmanager
def run_browser() -> Iterator[Browser]:
    """Start Chromium. Where it, Node or npm is missing the test is skipped, except on CI."""
    chromium = next((found for name in _NAMES if (found := shutil.which(name))), None)
    missing = [
        *([] if chromium else ["Chromium (Debian: apt-get install chromium)"]),
        *([] if shutil.which("node") and shutil.which("npm") else ["Node.js 20 or newer, with npm"]),
    ]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"install {' and '.join(missing)}")
    _install()
    process = subprocess.Popen(
        ["node", "bridge.mjs", str(chromium)],
        cwd=BRIDGE_DIR,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Browser(process)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _install() -> None:
    with (BRIDGE_DIR / "package.json").open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)  # several workers, one directory
        installed, wanted = BRIDGE_DIR / "node_modules/.package-lock.json", BRIDGE_DIR / "package-lock.json"
        if installed.exists() and installed.stat().st_mtime >= wanted.stat().st_mtime:
            return
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=BRIDGE_DIR,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
