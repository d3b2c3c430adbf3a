"""Downloads from a local server: whole, continued, cut, wrong, offline."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from samunet.errors import SamunetError
from samunet.networks.sam import download, variants

CONTENT = bytes(range(256)) * 5000
OFFICIAL = variants.OfficialFile(
    name="sam_fake.pth", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()
)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `ranges`: honours Range; `cut`: bytes after which a whole answer breaks off."""

    content = CONTENT
    ranges = True
    cut: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/sam_fake.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        content = self.server.content
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = self.server.cut if self.server.cut and not start else None
        self.wfile.write(content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    fake = dataclasses.replace(variants.VARIANTS["vit_b"], official=OFFICIAL)
    monkeypatch.setitem(variants.VARIANTS, "vit_b", fake)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def test_a_whole_download(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = download.download_weights(
        "vit_b", tmp_path / "new", url=server.url, progress=lambda *n: seen.append(n)
    )
    assert path == tmp_path / "new" / "sam_fake.pth"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in path.parent.iterdir()] == ["sam_fake.pth"]


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sam_fake.pth").write_bytes(CONTENT)
    download.download_weights("vit_b", tmp_path, url=server.url)
    assert server.asked == []


def test_another_file_of_that_name_is_never_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sam_fake.pth").write_bytes(b"mine")
    with pytest.raises(SamunetError, match="not the official file"):
        download.download_weights("vit_b", tmp_path, url=server.url)
    assert (tmp_path / "sam_fake.pth").read_bytes() == b"mine"


def test_a_broken_download_is_continued(server: Server, tmp_path: Path) -> None:
    server.cut = 700_000
    with pytest.raises(SamunetError, match="same command continues"):
        download.download_weights("vit_b", tmp_path, url=server.url)
    assert not (tmp_path / "sam_fake.pth").exists()
    path = download.download_weights("vit_b", tmp_path, url=server.url)
    assert server.asked == [None, "bytes=700000-"]
    assert path.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "sam_fake.pth.part").write_bytes(b"x" * 1000)
    assert download.download_weights("vit_b", tmp_path, url=server.url).read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sam_fake.pth.part").write_bytes(CONTENT)
    assert download.download_weights("vit_b", tmp_path, url=server.url).read_bytes() == CONTENT


def test_wrong_content_is_deleted(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>log in first</html>" * 100
    with pytest.raises(SamunetError, match="not the official"):
        download.download_weights("vit_b", tmp_path, url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_says_how_to_do_it_by_hand(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(SamunetError) as caught:
        download.download_weights("vit_b", tmp_path, url=url)
    for part in (url, OFFICIAL.sha256, str(tmp_path / "sam_fake.pth")):
        assert part in str(caught.value)


@pytest.mark.parametrize("url", ["/mnt/mirror/x.pth", "mirror/x.pth", "C:/mirror/x.pth", "http://[x"])
def test_a_mirror_is_named_by_a_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(SamunetError, match=r"--url .* is no URL: .*https://.*file:///") as caught:
        download.download_weights("vit_b", tmp_path / "weights", url=url)
    assert url in str(caught.value)
    assert not (tmp_path / "weights").exists()


def test_a_mirror_may_be_a_file(server: Server, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror.pth"
    mirror.write_bytes(CONTENT)
    file = download.download_weights("vit_b", tmp_path / "weights", url=mirror.as_uri())
    assert file.read_bytes() == CONTENT


def test_too_little_disk_is_said_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(SamunetError, match="Choose another folder"):
        download.download_weights("vit_b", tmp_path, url=server.url)
    assert server.asked == []


def test_only_published_weights_can_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(SamunetError, match="vit_b, vit_l, vit_h"):
        download.download_weights("vit_tiny", tmp_path)
