"""The page: what it hands out and to whom, and a person's clicks in a real browser."""

from __future__ import annotations

import http.client
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rushes import VideoText
from rushes.cli import main
from rushes.search.app import is_local
from rushes.search.library import build_library
from rushes.search.page import Page
from rushes.search.web import listen, make_app
from tests.search.pages import browsing, serving


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("page") / "videos"
    folder.mkdir()
    for index in range(3):
        shutil.copy(corpus / "videos" / f"test_0000{index}.mp4", folder)
    (folder.parent / "secret.mp4").write_bytes(b"hidden words")
    (folder / "notes.txt").write_text("hidden words")
    (folder / "link.mp4").symlink_to(folder.parent / "secret.mp4")
    return folder


@pytest.fixture(scope="module")
def page(videos: Path, retrieval_run: Path, qa_run: Path) -> Page:
    model = VideoText.from_pretrained(retrieval_run)
    index = videos.parent / "index"
    library, failed = build_library(model, videos, index, lengths=(2.0,), progress=False)
    assert [error.video for error in failed] == ["link"]
    return Page(model, library, videos, VideoText.from_pretrained(qa_run))


OURS = {"X-Rushes": "1"}


def test_moments_answers_and_neighbours(page: Page, videos: Path) -> None:
    with TestClient(make_app(page)) as client:
        assert client.get("/api/state").json()["videos"] == [f"test_0000{i}" for i in range(3)]
        found = client.post("/api/search", json={"text": "a red star", "top": 4}, headers=OURS)
        moments = found.json()["moments"]
        assert len(moments) == 4
        assert found.json()["seconds"].keys() == {"encode", "search"}
        asked = {"video": "test_00000", "question": "what shape?", "start": 0.0, "end": 2.0}
        answers = client.post("/api/answer", json=asked, headers=OURS).json()["answers"]
        assert len(answers) == 5
        data = (videos / "test_00001.mp4").read_bytes()
        near = client.post("/api/neighbours?top=3", content=data, headers=OURS).json()["moments"]
        assert {m["video"] for m in near} == {f"test_0000{i}" for i in range(3)}
        picture = client.get("/still/test_00002?at=1.0")
        assert picture.headers["content-type"] == "image/jpeg"


def test_players_can_seek(page: Page, videos: Path) -> None:
    data = (videos / "test_00000.mp4").read_bytes()
    with TestClient(make_app(page)) as client:
        part = client.get("/media/test_00000", headers={"Range": "bytes=100-299"})
        assert part.status_code == 206
        assert part.content == data[100:300]
        assert client.get("/media/test_00000").content == data


@pytest.mark.attack
@pytest.mark.parametrize(
    "name",
    [
        "../secret.mp4",
        "..%2fsecret.mp4",
        "%2e%2e/secret.mp4",
        "link",
        "link.mp4",
        "notes.txt",
        "test_00000.mp4/../../secret.mp4",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "http://localhost/x.mp4",
    ],
)
def test_nothing_else_is_handed_out(page: Page, name: str) -> None:
    with TestClient(make_app(page)) as client:
        for route in ("media", "still"):
            response = client.get(f"/{route}/{name}")
            assert response.status_code == 404
            assert b"hidden words" not in response.content
        assert client.get(f"/static/{name}").status_code == 404


@pytest.mark.attack
@pytest.mark.slow
def test_raw_paths_lead_nowhere(server: str) -> None:
    """Clients tidy paths up before they send them; an attacker's does not."""
    host, port = server.removeprefix("http://").rstrip("/").split(":")
    up = ("../", "..%2f", "%2e%2e/", "%252e%252e%252f", "..\\", "....//", "/")
    for route in ("/media/", "/still/", "/static/", "/"):
        for step in up:
            for name in ("secret.mp4", "test_00000/../../secret.mp4", "etc/passwd", "notes.txt"):
                connection = http.client.HTTPConnection(host, int(port), timeout=60)
                connection.putrequest("GET", f"{route}{step}{name}", skip_accept_encoding=True)
                connection.endheaders()
                response = connection.getresponse()
                body = response.read()
                connection.close()
                assert response.status == 404, (route, step, name)
                assert b"hidden words" not in body
                assert b"root:" not in body


@pytest.mark.attack
def test_a_video_that_becomes_a_link_is_no_longer_handed_out(
    tmp_path: Path, videos: Path, retrieval_run: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos / "test_00000.mp4", folder)
    model = VideoText.from_pretrained(retrieval_run)
    library, _ = build_library(model, folder, tmp_path / "index", lengths=(2.0,), progress=False)
    with TestClient(make_app(Page(model, library, folder))) as client:
        assert client.get("/media/test_00000").status_code == 200
        (folder / "test_00000.mp4").unlink()
        (folder / "test_00000.mp4").symlink_to(videos.parent / "secret.mp4")
        response = client.get("/media/test_00000")
        assert response.status_code in (400, 404)
        assert b"hidden words" not in response.content


@pytest.mark.attack
def test_the_token_and_other_sites(page: Page) -> None:
    with TestClient(make_app(page, token="s3cret"), follow_redirects=False) as client:
        for path in ("/", "/api/state", "/media/test_00000", "/static/app.js"):
            assert client.get(path).status_code == 403
        assert client.get("/api/state?token=wrong").status_code == 403
        assert client.get("/?token=s3cret").status_code == 307
        assert client.get("/api/state").status_code == 200  # by the cookie
        # A form on another site sends the cookie of a careless browser, but not our header.
        assert client.post("/api/search", json={"text": "x"}).status_code == 403
    with TestClient(make_app(page, hosts=("localhost",)), base_url="http://evil.test") as client:
        assert client.get("/api/state").status_code == 400
    assert is_local("127.0.0.1")
    assert is_local("::1")
    assert is_local("localhost")
    assert not is_local("0.0.0.0")
    assert not is_local("example.org")


@pytest.mark.attack
def test_nonsense_is_refused_with_its_reason(page: Page) -> None:
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("/api/search", {"json": {"text": " "}}, "nothing was asked"),
        ("/api/search", {"json": {"text": "x" * 1001}}, "the limit is 1000"),
        ("/api/search", {"json": {"text": "x", "top": 999}}, "expected 1 to 60"),
        ("/api/search", {"json": [1]}, "JSON object"),
        ("/api/search", {"content": b"{"}, ""),
        ("/api/answer", {"json": {"video": "test_00000", "question": "x", "start": -1}}, "a time"),
        ("/api/neighbours", {"content": b"no video"}, "["),
        ("/api/neighbours", {"content": b""}, "["),
    ]
    with TestClient(make_app(page)) as client:
        for path, sent, said in bad:
            response = client.post(path, headers=OURS, **sent)
            assert response.status_code == 400
            assert said in response.json()["error"]
        asked = {"video": "absent", "question": "x"}
        assert client.post("/api/answer", json=asked, headers=OURS).status_code == 404


@pytest.fixture(scope="module")
def server(videos: Path, retrieval_run: Path, qa_run: Path) -> Iterator[str]:
    command = ["app", str(retrieval_run), "--videos", str(videos), "--answers", str(qa_run)]
    with serving([*command, "--index", str(videos.parent / "served")]) as address:
        yield address


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with browsing(tmp_path / "profile") as driver:
        yield driver


def test_a_port_that_is_taken_is_said_before_anything_is_indexed(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        command = ["app", "no-such-run", "--videos", str(videos), "--port", port]
        assert main(command) == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


@pytest.mark.use
@pytest.mark.slow
@pytest.mark.needs_browser
def test_a_person_searches_asks_and_uploads(
    server: str, browser: Any, videos: Path, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def wait(condition: Any) -> Any:
        return WebDriverWait(browser, 30).until(condition)

    def all_of(css: str) -> list[Any]:
        return list(browser.find_elements(By.CSS_SELECTOR, css))

    browser.get(server)
    wait(lambda _: "3 videos" in browser.find_element(By.ID, "state").text)
    browser.find_element(By.ID, "text").send_keys("a red star moves left", Keys.ENTER)
    wait(lambda _: len(all_of(".moment")) >= 3)
    assert "searched in" in browser.find_element(By.ID, "message").text
    scores = [float(found.text) for found in all_of(".moment .score")]
    assert scores == sorted(scores, reverse=True)
    # The best moment really plays: its clock runs, inside the moment.
    video = all_of(".moment video")[0]
    playing = "return arguments[0].readyState >= 2 && arguments[0].currentTime > 0.2"
    wait(lambda _: browser.execute_script(playing, video))

    all_of(".moment")[0].click()
    wait(lambda _: browser.find_element(By.ID, "panel").is_displayed())
    browser.find_element(By.ID, "question").send_keys("what shape is it?")
    browser.find_element(By.CSS_SELECTOR, "#ask button").click()
    wait(lambda _: len(all_of("#answers li")) == 5)
    assert "answered in" in browser.find_element(By.ID, "asked").text
    assert browser.save_screenshot(os.environ.get("RUSHES_SCREENSHOT", str(tmp_path / "page.png")))

    browser.find_element(By.ID, "file").send_keys(str(videos / "test_00002.mp4"))
    wait(lambda _: "videos like test_00002.mp4" in browser.find_element(By.ID, "message").text)
    named = [found.text for found in all_of(".moment b")]
    assert sorted(named) == [f"test_0000{i}" for i in range(3)]
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not errors
