"""Who may see the pages, and who may cancel a job from one."""

import re

import httpx
import pytest

from tests.in_process_service import InProcessService
from tests.problems import assert_problem
from tests.service.http_api.api_key import CANARY_API_KEY

PAGES = ("/", "/jobs/some-job", "/status/panels", "/status/events", "/status/jobs/x/panels", "/docs")


def test_without_the_key_there_is_a_form_and_nothing_else(browser: httpx.Client) -> None:
    for path in ("/", "/jobs/some-job"):
        page = browser.get(path)
        assert page.status_code == 401
        assert page.headers["www-authenticate"] == "Bearer" if "www-authenticate" in page.headers else True
        assert "asks for an API key" in page.text
        assert f'name="page" type="hidden" value="{path}"' in page.text
        assert "cpu" not in page.text
    for path in ("/status/panels", "/status/events", "/status/jobs/x/events"):
        assert_problem(browser.get(path), "unauthorized")


def test_clients_of_the_api_get_a_problem_in_place_of_the_form(locked: InProcessService) -> None:
    with locked.client() as client:
        for path in ("/", "/jobs/some-job"):
            assert_problem(client.get(path), "unauthorized")


def test_probes_and_the_files_of_the_form_stay_free(locked: InProcessService, browser: httpx.Client) -> None:
    form = browser.get("/").text
    for path in ("/health", "/ready", "/metrics", *re.findall(r'href="(/status/files/[^"]+)"', form)):
        assert browser.get(path).status_code == 200, path
    with locked.client() as client:
        assert_problem(client.get("/status/files/absent"), "not-found")
        assert_problem(client.get("/status/files/../panels"), "unauthorized")


def test_a_session_opens_the_pages(signed_in: httpx.Client) -> None:
    assert "A request sent now is served" in signed_in.get("/").text
    assert signed_in.get("/status/panels").status_code == 200
    assert signed_in.get("/docs").status_code == 200
    assert signed_in.get("/jobs/some-job").status_code == 404
    signed_in.post("/sign-out")
    assert signed_in.get("/").status_code == 401


def test_a_session_opens_nothing_but_pages(signed_in: httpx.Client) -> None:
    assert_problem(signed_in.post("/eval", json={}), "unauthorized")
    assert_problem(signed_in.post("/score", json={}), "unauthorized")
    assert_problem(signed_in.get("/info"), "unauthorized")
    assert_problem(signed_in.delete("/jobs/some-job"), "unauthorized")


def test_the_cookie_is_out_of_reach(browser: httpx.Client) -> None:
    cookie = browser.post("/sign-in", data={"key": CANARY_API_KEY}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/" in cookie
    assert "Secure" not in cookie  # http
    assert CANARY_API_KEY not in cookie
    behind_tls = browser.post(
        "/sign-in", data={"key": CANARY_API_KEY}, headers={"X-Forwarded-Proto": "https"}
    )
    assert "Secure" in behind_tls.headers["set-cookie"]


def test_a_wrong_key_gets_the_form_again(browser: httpx.Client) -> None:
    for form in ({"key": "wrong"}, {"key": ""}, {}):
        page = browser.post("/sign-in", data=form)
        assert page.status_code == 401
        assert "does not know this key" in page.text
        assert "set-cookie" not in page.headers
        assert "wrong" not in page.text


@pytest.mark.parametrize(
    ("page", "target"),
    [
        ("/jobs/abc_-9", "/jobs/abc_-9"),
        ("/", "/"),
        ("https://other.example/", "/"),
        ("//other.example", "/"),
        ("/jobs/../x", "/"),
        ("/jobs/a\n", "/"),
        ("/docs", "/"),
    ],
)
def test_the_form_leads_back_to_pages_of_this_service_alone(
    browser: httpx.Client, page: str, target: str
) -> None:
    response = browser.post("/sign-in", data={"key": CANARY_API_KEY, "page": page})
    assert response.status_code == 303
    assert response.headers["location"] == target


def test_forms_are_bounded(browser: httpx.Client) -> None:
    assert browser.post("/sign-in", data={"key": "x" * 20_000}).status_code == 413
    many = "&".join(f"a{number}=" for number in range(50))
    assert browser.post("/sign-in", content=many).status_code == 422
    assert browser.post("/sign-in", content=b"\xff\xfe=%ff").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://other.example"},
        {"Origin": "null"},
        {},
    ],
)
def test_another_site_can_cancel_nothing(signed_in: httpx.Client, job: str, headers: dict[str, str]) -> None:
    del signed_in.headers["Sec-Fetch-Site"]
    for path in (f"{job}/cancel", "/sign-in", "/sign-out"):
        assert signed_in.post(path, headers=headers).status_code == 401, path
    assert signed_in.get(job, headers={"Accept": "application/json"}).json()["state"] != "cancelled"


def test_nor_where_there_is_no_key(api: InProcessService) -> None:
    with api.client() as client:
        assert_problem(client.post("/jobs/x/cancel"), "unauthorized")
        assert_problem(
            client.post("/jobs/x/cancel", headers={"Sec-Fetch-Site": "same-origin"}), "job-not-found"
        )


def test_the_button_cancels_and_leads_to_the_job(signed_in: httpx.Client, job: str) -> None:
    page = signed_in.get(job)
    action = re.search(r'action="([^"]+/cancel)"', page.text)
    assert action is not None
    response = signed_in.post(page.url.join(action[1]))
    assert response.status_code == 303
    assert response.headers["location"] == job
    assert "Cancelled." in signed_in.get(job).text


def test_the_button_takes_no_basic_authentication(browser: httpx.Client, job: str) -> None:
    assert browser.post(f"{job}/cancel", auth=("", CANARY_API_KEY)).status_code == 401
