"""How large the step-through page is, and how fast it steps, in headless Chromium.

    python -m tests.explore_speed
    python -m tests.explore_speed --picture examples/pictures/explore.png   # the one in the README

A step is timed from the key to the end of the layout that it causes, all modules open, and a frame
as the time between two pictures while a step is made in each of them (16.7 ms is each of them).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import minigrad as mg

NODES = (10, 100, 500)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]

STEP = """() => {
  const steps = 40, began = performance.now();
  for (let i = 0; i < steps; i++) {
    const key = i % 20 < 10 ? "ArrowRight" : "ArrowLeft";
    document.dispatchEvent(new KeyboardEvent("keydown", { key }));
    document.getElementById("graph").getBoundingClientRect();
  }
  return (performance.now() - began) / steps;
}"""
FRAME = """() => new Promise((done) => {
  const frames = 40, began = performance.now();
  let count = 0;
  const next = () => {
    if (count++ === frames) return done((performance.now() - began) / frames);
    document.getElementById(count % 20 < 10 ? "next" : "previous").click();
    requestAnimationFrame(next);
  };
  next();
})"""
FOLD = """() => {
  const began = performance.now();
  document.getElementById("fold").click();
  document.getElementById("graph").getBoundingClientRect();
  return performance.now() - began;
}"""


def write_page(nodes: int, path: Path) -> float:
    """Write the page of an MLP with about so many nodes; return how long it took."""
    layers = max(1, nodes // 4)
    model = mg.nn.MLP([16] * (layers + 1), activation=mg.tanh)
    with mg.viz.record() as tape:
        loss = mg.mse(model(mg.randn(16, 16)), mg.randn(16, 16))
    began = time.perf_counter()
    mg.viz.explore(loss, path, tape=tape)
    return time.perf_counter() - began


def take_picture(browser: Browser, folder: Path, out: str) -> None:
    """Take a screenshot of the step in which a pass without topological order goes wrong."""
    x = mg.tensor(3.0, requires_grad=True)
    h = 2 * x
    y = h + h
    mg.viz.explore(y, folder / "order.html", title="h = 2 * x;  y = h + h")
    page = browser.new_page(viewport={"width": 1280, "height": 640}, reduced_motion="reduce")
    page.goto((folder / "order.html").as_uri())
    page.click("#pass-depth")
    page.click("#to-fault")
    page.screenshot(path=out)


def measure(browser: Browser, folder: Path) -> None:
    """Print a table."""
    print("nodes  page KB  written s  open ms  step ms  frame ms  all modules open ms")
    write_page(10, folder / "warm.html")
    for nodes in NODES:
        path = folder / f"{nodes}.html"
        written = write_page(nodes, path)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        opened = 1000 * (time.perf_counter() - began)
        fold = page.evaluate(FOLD)
        while page.locator(".group.closed").count():  # the button closes all, or opens all
            fold = page.evaluate(FOLD)
        step, frame = page.evaluate(STEP), page.evaluate(FRAME)
        print(
            f"{nodes:5}  {path.stat().st_size / 1000:7.0f}  {written:9.2f}  {opened:7.0f}"
            f"  {step:7.1f}  {frame:8.1f}  {fold:19.0f}"
        )
        page.close()


def main() -> None:
    """Measure, or take the picture."""
    parser = argparse.ArgumentParser(description="The speed of the step-through page.")
    parser.add_argument("--picture", metavar="FILE", help="take a picture of a page instead")
    out = parser.parse_args().picture
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is not installed")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        if out is None:
            measure(browser, Path(folder))
        else:
            take_picture(browser, Path(folder), out)
        browser.close()


if __name__ == "__main__":
    main()
