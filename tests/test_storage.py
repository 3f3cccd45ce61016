"""`rushes storage`: against a real HTTP server on the loopback, interrupted and damaged."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rushes import storage
from rushes.datasets.annotations import open_records
from rushes.errors import StorageError
from rushes.storage import download, main
from tests.helpers import ROOT, launch

TGIF = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\n" + "".join(
    f"gif{i}\twhat happens ?\ta\tb\tc\td\te\t{i % 5}\tACTION{i}\t{i}\n" for i in range(40)
)
FRAME = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\n" + "".join(
    f'gif{i}\twhat is it ?\t{"cat" if i % 3 else "dog"}\t0\tF{i}\t{i}\ta "cat"\n' for i in range(40)
)


class Site:
    """What the loopback server has, and how it misbehaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut: dict[str, int] = {}
        self.fail: dict[str, int] = {}
        self.wrong_checksum = False
        self.ranges = True


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range")
        site.requests.append((self.path, wanted))
        if site.fail.get(self.path, 0) > 0:
            site.fail[self.path] -= 1
            self.send_error(503)
            return
        body = site.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
        if start > len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        digest = hashlib.sha256(b"x" if site.wrong_checksum else body).hexdigest()
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.end_headers()
        sent = body[start:]
        if self.path in site.cut:
            sent = sent[: site.cut.pop(self.path)]
        self.wfile.write(sent)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    handler = type("Bound", (Handler,), {"site": Site()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv(storage.MIRROR_VARIABLE, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("rushes.storage.time.sleep", lambda _: None)
    yield handler.site  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def _served(address: str) -> str:
    return "/" + address.split("://", 1)[1]


def _fill(site: Site) -> None:
    for item in storage.ITEMS:
        if not item.fetched:
            continue
        name = item.address.rsplit("/", 1)[1]
        if item.raw:
            body = f"weights of {item.path}".encode() * 500
        elif "frameqa" in name:
            body = FRAME.encode()
        elif name.endswith("_question.csv"):
            body = TGIF.encode()
        elif name == "msrvtt_test.csv":
            body = b"key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person\n"
        elif "_data.json" in name:
            rows = [{"video": "a.mov", "description": d, "times": [[0, 1]], "annotation_id": i}
                    for i, d in enumerate(("first", "then"))]  # fmt: skip
            body = json.dumps(rows).encode()
        else:
            row = {"duration": 9.0, "timestamps": [[0, 5]], "sentences": ["A man sings."]}
            body = json.dumps({"v_1": row}).encode()
        site.files[_served(item.address)] = body


def test_fetch_makes_the_folder_and_check_verifies_it(
    tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(site)
    assert main(["fetch", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "fetched        data/tgif_qa/action_val.jsonl" in told
    lines = [line for line in told.splitlines() if line.startswith("yours to get")]
    assert any("hdvila_stage2.pt" in x and "Microsoft Research licence" in x for x in lines)
    assert all("https://" in line for line in lines)
    for folder in storage.FOLDERS:
        assert (tmp_path / folder).is_dir()
    data = tmp_path / "data"
    train, held = (open_records([data / f"tgif_qa/action_{s}.jsonl"]) for s in ("train", "val"))
    assert (len(train), len(held)) == (38, 2)
    assert not {r.video for r in train} & {r.video for r in held}
    assert open_records([data / "msrvtt_retrieval/test1ka.jsonl"])[0].video == "video9770"
    paragraph = open_records([data / "didemo_retrieval/test_frame.jsonl"])[0]
    assert paragraph.texts() == ("first", "then")
    answers = json.loads((data / "tgif_qa/frameqa_trainval_ans2label.json").read_text())
    assert answers == {"cat": 0, "dog": 1}
    # Again: nothing is asked for twice.
    before = len(site.requests)
    assert main(["fetch", str(tmp_path)]) == 0
    assert len(site.requests) == before
    assert main(["check", str(tmp_path)]) == 0
    capsys.readouterr()
    (data / "pretrained/bert-base-uncased/vocab.txt").write_text("changed")
    assert main(["check", str(tmp_path)]) == 1
    assert "damaged        data/pretrained/bert-base-uncased/vocab.txt" in capsys.readouterr().out


def test_an_interrupted_file_is_continued(tmp_path: Path, site: Site) -> None:
    body = bytes(range(256)) * 5000
    site.files["/example.org/w.bin"] = body
    site.cut["/example.org/w.bin"] = 1_000_000
    site.fail["/example.org/w.bin"] = 1
    download("https://example.org/w.bin", tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == body
    assert site.requests[1:] == [
        ("/example.org/w.bin", None),
        ("/example.org/w.bin", "bytes=1000000-"),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["w.bin"]


@pytest.mark.parametrize("left", [b"old half", b"x" * 5000])
def test_a_part_that_does_not_fit_is_fetched_anew(tmp_path: Path, site: Site, left: bytes) -> None:
    site.files["/example.org/w.bin"] = b"the whole file"
    site.ranges = len(left) > 100  # else the server knows no ranges and sends all of it
    (tmp_path / "w.bin.part").write_bytes(left)
    download("https://example.org/w.bin", tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == b"the whole file"


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path: Path, site: Site) -> None:
    site.files["/example.org/w.bin"] = b"content"
    site.wrong_checksum = True
    with pytest.raises(StorageError, match="the server states"):
        download("https://example.org/w.bin", tmp_path / "w.bin")
    assert not list(tmp_path.iterdir())


def test_what_is_not_to_be_had_is_named_and_the_rest_is_fetched(
    tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(site)
    gone = next(i for i in storage.ITEMS if i.path.endswith("transition_test.jsonl"))
    del site.files[_served(gone.address)]
    assert main(["fetch", str(tmp_path), "--only", "data/tgif_qa"]) == 1
    told = capsys.readouterr().out
    assert "not to be had  data/tgif_qa/transition_test.jsonl" in told
    assert "HTTP 404" in told
    assert (tmp_path / "data/tgif_qa/transition_train.jsonl").is_file()
    assert not (tmp_path / "data/pretrained/bert-base-uncased/vocab.txt").exists()


def test_the_users_own_archives_are_unpacked_where_they_belong(tmp_path: Path, site: Site) -> None:
    with zipfile.ZipFile(tmp_path / "pretrained.zip", "w") as archive:
        archive.writestr("pretrained/hdvila_stage2.pt", b"w" * 100)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr(
            "data/msrvtt_qa/train.jsonl", '{"question": "q", "answer": "a", "video_id": "v"}'
        )
        archive.writestr("msrvtt_qa/val.jsonl", "{}")
    arguments = [
        "fetch",
        str(tmp_path),
        "--only",
        "nothing",
        "--data-zip",
        str(tmp_path / "mine.zip"),
    ]
    assert main(arguments) == 0
    assert (tmp_path / "data/pretrained/hdvila_stage2.pt").stat().st_size == 100
    assert (tmp_path / "data/msrvtt_qa/train.jsonl").is_file()
    assert (tmp_path / "data/msrvtt_qa/val.jsonl").is_file()
    assert json.loads((tmp_path / "data/msrvtt_qa/train_ans2label.json").read_text()) == {"a": 0}


@pytest.mark.attack
@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "data/../../evil"])
def test_an_archive_cannot_write_outside(tmp_path: Path, site: Site, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"x")
    root = tmp_path / "a" / "b"
    with pytest.raises(StorageError, match="leads out"):
        main(["fetch", str(root), "--data-zip", str(tmp_path / "bad.zip")])
    assert not list(tmp_path.rglob("evil"))
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(StorageError, match=r"no\.zip"):
        main(["fetch", str(root), "--data-zip", str(tmp_path / "no.zip")])


def test_the_folder_comes_from_the_environment(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="PATH_TO_STORAGE"):
        main(["check"])
    monkeypatch.setenv("PATH_TO_STORAGE", str(tmp_path))
    assert main(["check"]) == 0
    with pytest.raises(StorageError, match="no such folder"):
        main(["check", str(tmp_path / "nothing")])


@pytest.mark.slow
def test_the_script_makes_the_folder(tmp_path: Path, site: Site) -> None:
    _fill(site)
    script = ROOT / "scripts" / "download_data.sh"
    done = launch(["bash", script, tmp_path / "my storage", "--only", "data/didemo_retrieval"])
    assert "fetched        data/didemo_retrieval/train_frame.jsonl" in done.stdout
    assert launch(["bash", script], status=2).stderr.startswith("usage:")
