"""The pages in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.http_api.status_page.rendering import age
from tests.in_process_service import InProcessService, in_process_service
from tests.service.http_api.api_key import CANARY_API_KEY
from tests.service.http_api.status_page.busy_service import jobs_of, made_up_board, write_board
from tests.service.http_api.status_page.chromium import IS_HERE, Chromium, chromium
from tests.service.http_api.status_page.request_headers import AS_JOB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_HERE, reason="there is no chromium and chromedriver on this machine"),
]

SCREENS = [
    pytest.param(1440, False, id="light"),
    pytest.param(1440, True, id="dark"),
    pytest.param(390, False, id="phone"),
    pytest.param(2560, True, id="wall"),
]


@pytest.fixture(scope="module")
def started() -> Iterator[Chromium]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def screen(started: Chromium) -> Iterator[Chromium]:
    """The browser; whatever it complained about fails the test."""
    started.complaints()
    started.hosts()
    yield started
    started.driver.delete_all_cookies()
    started.driver.get("about:blank")


def test_a_change_is_seen_without_a_reload(
    screen: Chromium, api: InProcessService, plain: dict[str, Any]
) -> None:
    screen.open(f"{api.http_url}/")
    screen.wait_for_text("Live", "#connection")
    screen.wait_for_text("idle", "#panel-devices")
    screen.js("window.isTheSamePage = true")
    with api.busy(), api.client() as client:
        location = client.post("/eval", json=plain, headers=AS_JOB).headers["location"]
        screen.wait_for_text("busy", "#panel-devices")
        screen.wait_for_text("running", "#panel-jobs")
        client.delete(location)
        screen.wait_for_text("cancelled", "#panel-jobs")
        screen.wait_for_text("idle", "#panel-devices")
    assert screen.js("return window.isTheSamePage")
    assert screen.text("#connection") == "Live"  # not by polling
    assert screen.complaints() == []


def test_what_does_not_change_stays(screen: Chromium, busy: InProcessService) -> None:
    """An element that people have selected or focused is not replaced when something else changes."""
    screen.open(f"{busy.http_url}/")
    screen.wait_for_text("Live", "#connection")
    screen.js("window.button = document.querySelector('#panel-jobs button'); window.button.focus()")
    screen.js(
        "show({jobs: document.getElementById('panel-jobs').innerHTML + '<p>more</p>'}, Date.now() / 1000)"
    )
    assert screen.js("return document.activeElement === window.button && window.button.isConnected")
    assert "more" in screen.text("#panel-jobs")


def test_it_says_when_the_service_is_gone_and_goes_on_after_its_restart(
    screen: Chromium, tmp_path: Path
) -> None:
    with in_process_service(tmp_path) as service:
        port = int(service.http_url.rpartition(":")[2])
        screen.open(f"{service.http_url}/")
        screen.wait_for_text("Live", "#connection")
        screen.js("window.isTheSamePage = true")
    screen.wait_for_text("No answer", "#connection")
    assert screen.driver.title.startswith("No answer")
    with in_process_service(tmp_path, port=port, queue_size=7):
        screen.wait_for_text("Live", "#connection")
        screen.wait_for_text("of 7 places taken", "#panel-queue")
        assert screen.driver.title.startswith("Ready")
        assert screen.js("return window.isTheSamePage")


def test_it_asks_where_events_do_not_arrive(screen: Chromium, api: InProcessService) -> None:
    screen.driver.execute_cdp_cmd("Network.enable", {})
    screen.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/status/events*"]})
    try:
        screen.open(f"{api.http_url}/")
        screen.wait_for_text("Live, every 5 s", "#connection")
        api.pool.is_ready = False
        screen.wait_for_text("No worker is ready", "#panel-serving")
    finally:
        api.pool.is_ready = True
        screen.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})


def test_it_can_be_read_without_javascript(busy: InProcessService) -> None:
    with chromium(javascript=False) as browser:
        for path in ("/", *jobs_of(busy).values()):
            browser.open(f"{busy.http_url}{path}")
            assert "As of" in browser.text("#connection")
            assert "http-equiv" in browser.driver.page_source
        browser.open(f"{busy.http_url}/")
        assert "Yes, with 3 of 4 devices." in browser.text("h1")
        assert "s ago" in browser.text("#panel-devices")


def test_nothing_comes_from_another_host(screen: Chromium, busy: InProcessService) -> None:
    for path in ("/", *jobs_of(busy).values(), "/jobs/absent"):
        screen.open(f"{busy.http_url}{path}")
        if path != "/jobs/absent":
            screen.wait_for_text("Live", "#connection")
            assert screen.complaints() == []
    assert screen.hosts() == {busy.http_url}


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_it_fits_the_screen_and_keeps_nobody_out(
    screen: Chromium, busy: InProcessService, width: int, dark: bool
) -> None:
    for path in ("/", *jobs_of(busy).values(), "/jobs/absent"):
        screen.open(f"{busy.http_url}{path}", width=width, dark=dark)
        assert screen.js("return document.documentElement.scrollWidth <= innerWidth"), path
        assert screen.barriers() == [], path
        red, green, blue = screen.js(
            "return getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
        )
        assert (red + green + blue < 3 * 64) is dark
        assert screen.picture().startswith(b"RIFF")


def test_a_watch_that_begins_is_seen_without_a_reload(screen: Chromium, tmp_path: Path) -> None:
    with in_process_service(tmp_path) as service:
        screen.open(f"{service.http_url}/")
        screen.wait_for_text("Live", "#connection")
        assert "Watched checkpoints" not in screen.text("main")
        write_board(tmp_path, made_up_board())
        screen.wait_for_text("step-056000.safetensors", "#panel-leaderboards")
        assert "Watched checkpoints" in screen.text("main")
        assert screen.text("#connection") == "Live"


def test_an_empty_page_keeps_nobody_out(screen: Chromium, tmp_path: Path) -> None:
    with in_process_service(tmp_path) as service:
        screen.open(f"{service.http_url}/")
        screen.wait_for_text("Live", "#connection")
        assert "Nothing was asked for in the last 60 minutes." in screen.text("#panel-hour")
        assert "No jobs." in screen.text("#panel-jobs")
        assert screen.barriers() == []


def test_what_keeps_people_out_would_be_found(screen: Chromium, api: InProcessService) -> None:
    screen.open(f"{api.http_url}/")
    screen.js("document.querySelector('main').append(document.createElement('input'))")
    assert [barrier for barrier in screen.barriers() if barrier.startswith("label: <input>")]


def test_signing_in_looking_and_cancelling(screen: Chromium, locked: InProcessService, job: str) -> None:
    screen.open(f"{locked.http_url}{job}")
    assert "asks for an API key" in screen.text("h1")
    assert screen.barriers() == []
    screen.driver.find_element("id", "key").send_keys("wrong\n")
    screen.wait_for_text("does not know this key")
    screen.driver.find_element("id", "key").send_keys(f"{CANARY_API_KEY}\n")
    screen.wait_for_text("Running.", "h1")
    screen.wait_for_text("Live", "#connection")
    assert CANARY_API_KEY not in screen.driver.page_source
    assert screen.js("return document.cookie") == ""
    screen.driver.find_element("css selector", "main button").click()
    screen.wait_for_text("Cancelled.", "h1")
    screen.driver.find_element("css selector", "nav button").click()
    screen.wait_for_text("asks for an API key", "h1")


def test_ages_are_written_alike_by_the_service_and_by_the_script(
    screen: Chromium, api: InProcessService
) -> None:
    seconds = [-1, 0, 1.9, 59.99, 60, 3599, 3600, 3661, 48 * 3600 - 1, 48 * 3600, 1e7]
    screen.open(f"{api.http_url}/")
    assert screen.js("return arguments[0].map(age)", seconds) == [age(each) for each in seconds]
