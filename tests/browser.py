"""The browser of the tests of pages, a fixture, and a wait for what a page does in its own time."""

import shutil
import time

import pytest

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]


# While it is open, its thread cannot run a notebook or open another.
@pytest.fixture(scope="module")
def browser():
    """A browser without a window; without playwright or chromium, the test is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


# Playwright's wait_for_function evaluates text inside of the page, which the content security
# policy of a page refuses as soon as a first look does not find the condition true.
def wait_until(page, condition, arg=None):
    """Wait until JavaScript is true in a page or frame; after 30 seconds the test fails."""
    end = time.monotonic() + 30
    while not page.evaluate(condition, arg):
        assert time.monotonic() < end, f"this did not become true in 30 seconds: {condition}"
        time.sleep(0.02)
