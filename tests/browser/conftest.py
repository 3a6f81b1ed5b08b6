"""A headless Chromium, and pages that record everything they complain about or ask for."""

import contextlib
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# What a page may ask for without a network.
LOCAL = ("data:", "blob:", "about:")


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(NAMES)} is installed")
    # The tests of everything else need no extra.
    from playwright.sync_api import sync_playwright

    # Playwright makes a new folder for the browser's profile, and removes it.
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def opened(browser):
    """`with opened(address, width, scheme) as page`, whose end fails if the page had a problem."""

    @contextlib.contextmanager
    def open_page(address, width=1280, scheme="light"):
        size = {"width": width, "height": 900}
        page, problems = browser.new_page(viewport=size, color_scheme=scheme), []

        def on_console(message):
            if message.type in ("error", "warning"):
                problems.append(f"{page.url}: {message.text}")

        def on_request(request):
            if not request.url.startswith((*LOCAL, address[: address.find("/", 8)])):
                problems.append(f"{page.url} asked for {request.url}")

        page.on("console", on_console)
        page.on("request", on_request)
        page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
        # A machine may be busy with other tests.
        page.set_default_timeout(120_000)
        page.goto(address)
        try:
            yield page
        finally:
            page.close()
        assert not problems

    return open_page


def overflow(page):
    """How many pixels the page is wider than its window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def violations(page, rules=None):
    """Rules of axe-core that the page breaks: those of serious or critical impact, with places."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"]} | ({} if rules is None else {"runOnly": rules})
    broken = Axe().run(page, options=options).response["violations"]
    return {
        rule["id"]: [node["target"] for node in rule["nodes"]]
        for rule in broken
        if rule["impact"] in ("serious", "critical")
    }
