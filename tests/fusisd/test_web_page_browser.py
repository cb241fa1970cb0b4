"""The status page in a real Chromium, from a real fusisd (without a kernel): what an operator sees."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fusisd.browser import Browser, Page, executable
from tests.fusisd.dry import Dry
from tests.lab.expect import poll

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = executable()
    if program is None:
        pytest.skip("no Chromium here; .ci/setup installs Debian's chromium-headless-shell")
    with Browser(program, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def servers() -> Iterator[list[socket.socket]]:
    """Two that accept."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    yield servers
    for server in servers:
        server.close()


@pytest.fixture
def daemon(tmp_path: Path, servers: list[socket.socket]) -> Iterator[Dry]:
    """A fusisd with one service, whose destinations both pass their check."""
    daemon = Dry(tmp_path)
    daemon.start()
    rows = {
        f"rs{number}": {"address": "127.0.0.1", "port": server.getsockname()[1], "method": "nat"}
        for number, server in enumerate(servers, 1)
    }
    service = {"name": "web", "protocol": "tcp", "address": "10.0.0.1", "port": 80, "check": {"kind": "tcp"}}
    assert daemon.ask("POST", "/v1/services", {**service, "destinations": rows})[0] == 201
    poll(lambda: daemon.ask("GET", "/services")[1].count(b'"Weight":1') == 2, what="both serve")
    yield daemon
    daemon.close()


def address(daemon: Dry, query: str = "") -> str:
    return f"http://127.0.0.1:{daemon.port}/{query}"


def shown(page: Page, *words: str) -> str:
    """What the page says, as soon as it says all of these."""

    def said() -> str:
        text = page.text()
        assert all(word in text for word in words), text
        return text

    return poll(said)


def test_a_server_that_dies_is_seen_without_a_reload(browser: Browser, daemon: Dry, servers: list[socket.socket]) -> None:
    page = Page(browser)
    page.open(address(daemon))
    shown(page, "All is well", "2 of 2 serving", "live")
    assert page.value("document.title").startswith("● All is well")
    page.value("window.untouched = true")
    servers[0].close()
    shown(page, "1 thing is wrong", "1 of 2 destinations failing: rs1 (", "fusisctl why web/rs1", "1 of 2 serving")
    assert page.value("document.title").startswith("▲ 1 thing is wrong")
    assert page.value("document.getElementById('icon').href").endswith("/status-attention.svg")
    assert page.value("window.untouched") is True
    assert page.complaints() == []
    assert {url.rpartition("/")[0] + "/" for url in page.requested()} == {address(daemon)}, "nothing comes from elsewhere"


def test_a_tab_in_the_background_says_so_in_its_title_and_icon(
    browser: Browser, daemon: Dry, servers: list[socket.socket]
) -> None:
    page = Page(browser)
    hides = "Object.defineProperty(document, 'hidden', {get: () => true})"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=hides)
    page.open(address(daemon))
    poll(lambda: page.value("document.title").startswith("● All is well"), 30, "it to be well")
    for server in servers:
        server.close()
    poll(lambda: page.value("document.title").startswith("✕ web does not serve"), 60, "its title")
    assert page.value("document.getElementById('icon').href").endswith("/status-down.svg")


def test_without_javascript_it_says_the_same(browser: Browser, daemon: Dry) -> None:
    page = Page(browser, script=False)
    page.open(address(daemon))
    text = shown(page, "All is well", "web", "tcp/10.0.0.1:80", "rs1", "rs2", "2 of 2 serving", "as of")
    assert "live" not in text
    assert page.complaints() == []


@pytest.mark.parametrize("query", ["", "?service=web"])
def test_nothing_scrolls_sideways_on_a_phone_or_elsewhere(browser: Browser, daemon: Dry, query: str) -> None:
    long_name = "a-server-with-a-name-as-long-as-names-may-be-0123456789012345678"[:63]
    row = {"name": long_name, "address": "10.255.255.255", "port": 65535, "method": "nat"}
    assert daemon.ask("POST", "/v1/services/web/destinations", row)[0] == 201
    for width in (360, 800, 1030, 1160, 1310, 1920):
        page = Page(browser, width, 800)
        page.open(address(daemon, query))
        shown(page, long_name, "live")
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.complaints() == []


def test_names_are_text_and_keys_lead_to_the_search_and_hold_the_page(browser: Browser, daemon: Dry) -> None:
    page = Page(browser)
    page.open(address(daemon, "?service=%3Cimg%20src=x%20onerror=alert(1)%3E"))
    shown(page, f"There is no service {HOSTILE}.")
    assert page.value("document.images.length") == 0
    inline = "Object.assign(document.createElement('script'), {textContent: 'window.hacked = true'})"
    page.value(f"document.body.append({inline})")
    assert page.value("window.hacked") is None, "the policy lets no inline script run"
    page.open(address(daemon))
    shown(page, "All is well", "live")
    page.key("/")
    assert page.value("document.activeElement.id") == "find"
    page.key("Escape")
    page.key("p")
    shown(page, "paused: what is shown stands still")
    page.key("p")
    shown(page, "live")


def test_a_daemon_that_is_gone_is_told_and_one_that_is_back_is_seen(browser: Browser, daemon: Dry) -> None:
    page = Page(browser)
    page.open(address(daemon))
    shown(page, "live")
    daemon.close()
    shown(page, "what is shown is old")
    assert page.value("document.title").startswith("✕ no answer")
    assert page.value("document.getElementById('icon').href").endswith("/status-down.svg")
    daemon.start()
    shown(page, "live", "All is well")
    poll(lambda: page.value("document.title").startswith("● All is well"), 30, "its title")
