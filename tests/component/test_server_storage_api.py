"""``api/storage``, properties, repositories, system (artifactory-rest 6, 7, 9, 11)."""

import re
from pathlib import Path

import pytest

from jfs.errors import ConfigError
from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_STORAGE = "application/vnd.org.jfrog.artifactory.storage"


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    server.deploy(REPO, "a/b/m.onnx", b"weights", {"env": ["prod", "dev"]})
    server.deploy(REPO, "a/c.json", b"{}")
    return Requests(server)


def test_information_of_a_file(ask: Requests) -> None:
    for slash in ("", "/"):
        reply = ask.get(f"/api/storage/{REPO}/a/b/m.onnx{slash}")
        assert reply.headers["Content-Type"] == f"{_STORAGE}.FileInfo+json"
        info = reply.json()
        assert list(info) == [
            *("repo", "path", "created", "createdBy", "lastModified", "modifiedBy", "lastUpdated"),
            *("downloadUri", "mimeType", "size", "checksums", "originalChecksums", "uri"),
        ]
        assert (info["repo"], info["path"], info["size"]) == (REPO, "/a/b/m.onnx", "7")
        assert sorted(info["checksums"]) == ["md5", "sha1", "sha256"]
        assert list(info["originalChecksums"]) == ["sha256"]
        assert all(_DATE.fullmatch(info[key]) for key in ("created", "lastModified", "lastUpdated"))
        assert info["downloadUri"] == f"{ask.server.url}/{REPO}/a/b/m.onnx"
        assert info["uri"] == f"{ask.server.url}/api/storage/{REPO}/a/b/m.onnx"


def test_information_of_folders(ask: Requests) -> None:
    reply = ask.get(f"/api/storage/{REPO}/a")
    assert reply.headers["Content-Type"] == f"{_STORAGE}.FolderInfo+json"
    assert reply.headers["Cache-Control"] == "no-store"
    info = reply.json()
    assert list(info) == [
        *("repo", "path", "created", "createdBy", "lastModified", "modifiedBy", "lastUpdated"),
        *("children", "uri"),
    ]
    assert info["children"] == [
        {"uri": "/b", "folder": True},
        {"uri": "/c.json", "folder": False},
    ]
    root = ask.get(f"/api/storage/{REPO}").json()
    assert (root["path"], root["children"]) == ("/", [{"uri": "/a", "folder": True}])
    ask.put(f"/{REPO}/empty/")
    assert ask.get(f"/api/storage/{REPO}/empty").json()["children"] == []
    for path in (f"{REPO}/nope", "nope", "nope/x"):
        assert ask.get(f"/api/storage/{path}").message == "Unable to find item"


def test_the_address_behind_a_proxy(ask: Requests) -> None:
    path = f"/api/storage/{REPO}/a/c.json"
    seen = ask.get(path, X_JFrog_Override_Base_Url="https://models.example/")
    assert seen.json()["downloadUri"] == f"https://models.example/artifactory/{REPO}/a/c.json"
    old = ask.get(path, X_Artifactory_Override_Base_Url="https://models.example/x")
    assert old.json()["downloadUri"] == f"https://models.example/x/{REPO}/a/c.json"


def uris(ask: Requests, query: str, path: str = "") -> list[str]:
    document = ask.get(f"/api/storage/{REPO}{path}?list{query}").json()
    assert list(document) == ["uri", "created", "files"]
    assert document["uri"] == f"{ask.server.url}/api/storage/{REPO}{path}"
    return [row["uri"] for row in document["files"]]


def test_file_lists(ask: Requests) -> None:
    assert uris(ask, "") == []
    assert uris(ask, "&listFolders=1") == ["/a"]
    assert uris(ask, "=true&deep=1") == ["/a/b/m.onnx", "/a/c.json"]
    assert uris(ask, "&deep=1&listFolders=1&depth=2") == ["/a", "/a/b", "/a/c.json"]
    assert uris(ask, "&deep=1", "/a") == ["/b/m.onnx", "/c.json"]
    assert uris(ask, "&includeRootPath=1", "/a") == ["/", "/c.json"]
    ask.get(f"/{REPO}/a/b/m.onnx")
    reply = ask.get(
        f"/api/storage/{REPO}/a?list&deep=1&listFolders=1&mdTimestamps=1&statsTimestamps=1"
    )
    assert reply.headers["Content-Type"] == f"{_STORAGE}.FileList+json"
    folder, file, other = reply.json()["files"]
    assert folder.pop("lastModified")
    assert folder == {"uri": "/b", "size": -1, "folder": True}
    assert list(file) == ["uri", "size", "lastModified", "folder", "sha1", "sha2", "mdTimestamps"]
    assert (file["size"], file["folder"]) == (7, False)
    assert _DATE.fullmatch(file["mdTimestamps"]["properties"])
    assert _DATE.fullmatch(file["mdTimestamps"]["artifactory.stats"])
    assert "mdTimestamps" not in other


def test_file_lists_that_are_refused(ask: Requests) -> None:
    assert ask.get(f"/api/storage/{REPO}/a/c.json?list").status == 400
    assert ask.get(f"/api/storage/{REPO}/nope?list").message == "Unable to find item"
    assert ask.get(f"/api/storage/{REPO}?list&deep=true").status == 400
    assert ask.get("/api/storage/?list").message == "Cannot list files of root."


def test_properties_that_are_read(ask: Requests) -> None:
    path = f"/api/storage/{REPO}/a/b/m.onnx?properties"
    reply = ask.get(path)
    assert reply.headers["Content-Type"] == f"{_STORAGE}.ItemProperties+json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.json() == {
        "properties": {"env": ["prod", "dev"]},
        "uri": f"{ask.server.url}/api/storage/{REPO}/a/b/m.onnx",
    }
    assert ask.get(f"{path}=env,nope").json()["properties"] == {"env": ["prod", "dev"]}
    assert ask.get(f"{path}=e*").json()["properties"] == {"env": ["prod", "dev"]}
    assert ask.get(f"/{REPO}/a/b/m.onnx?properties").json() == reply.json()
    for missing in (
        f"{path}=nope",
        f"/api/storage/{REPO}/a?properties",
        f"{path[:-16]}x?properties",
    ):
        assert ask.get(missing).message == "No properties could be found."


def test_properties_that_are_set(ask: Requests) -> None:
    before = ask.get(f"/api/storage/{REPO}/a/b/m.onnx").json()
    path = f"/api/storage/{REPO}/a/b/m.onnx?recursive=0&properties"
    reply = ask.put(f"{path}=env=live;owner=a+b%2Cc|x=1%5C%2C2")
    assert (reply.status, reply.body) == (204, b"")
    assert ask.properties("a/b/m.onnx") == {
        "env": ["live"],
        "owner": ["a b", "c"],
        "x": ["1,2"],
    }
    after = ask.get(f"/api/storage/{REPO}/a/b/m.onnx").json()
    assert after["lastModified"] == before["lastModified"]
    assert ask.delete(f"{path}=owner,nope,").status == 204
    assert sorted(ask.properties("a/b/m.onnx")) == ["env", "x"]
    assert ask.delete(f"/api/storage/{REPO}/a?properties=").message == (
        "Unspecified properties to delete."
    )
    assert ask.put(f"{path}=k=a=b").message == "Properties value cannot be empty."
    assert "is invalid" in ask.put(f"{path}=1k=a").message
    assert ask.put(f"/api/storage/{REPO}/nope?properties=k=v").status == 404


def test_properties_of_a_folder_go_down_by_default(ask: Requests) -> None:
    ask.put(f"/api/storage/{REPO}/a?properties=team=x")
    assert ask.properties("a") == {"team": ["x"]}
    assert ask.properties("a/b") == {"team": ["x"]}
    assert ask.properties("a/b/m.onnx") == {"env": ["prod", "dev"], "team": ["x"]}
    ask.put(f"/api/storage/{REPO}/a?properties=only=1&recursive=0")
    assert ask.properties("a/b") == {"team": ["x"]}
    ask.delete(f"/api/storage/{REPO}/a?properties=team")
    assert ask.properties("a/c.json") == {}


def test_metadata(ask: Requests) -> None:
    path = f"/api/metadata/{REPO}/a/b/m.onnx"
    odd = 'a;b=c|d,e\\f "ü"'
    assert ask.patch(path, {"props": {"env": None, "odd": odd, "two": ["1", "2"]}}).status == 204
    assert ask.properties("a/b/m.onnx") == {"odd": [odd], "two": ["1", "2"]}
    assert ask.patch(path, {"props": {"empty": ""}}).status == 204
    assert ask.properties("a/b/m.onnx")["empty"] == [""]
    assert ask.patch(f"/api/metadata/{REPO}/a?recursiveProperties=0", {"props": {"k": "v"}})
    assert ask.properties("a/b") == {}
    ask.patch(f"/api/metadata/{REPO}/a", {"props": {"k": "v"}})
    assert ask.properties("a/b") == {"k": ["v"]}
    for bad in ({}, {"props": {"k": 1}}, {"props": {"k": [1]}}, [], {"props": {"k k": "v"}}):
        assert ask.patch(path, bad).status == 400
    assert ask("PATCH", path, b"{").status == 400
    assert ask.patch(f"/api/metadata/{REPO}/nope", {"props": {}}).status == 404
    assert ask.delete(path).status == 204
    assert ask.properties("a/b/m.onnx") == {}


def test_downloads_are_counted(ask: Requests) -> None:
    path = f"/{REPO}/a/c.json"
    stats = ask.get(f"/api/storage{path}?stats").json()
    assert stats == {
        "uri": f"{ask.server.url}{path}",
        "downloadCount": 0,
        "lastDownloaded": 0,
        "remoteDownloadCount": 0,
        "remoteLastDownloaded": 0,
    }
    ask.get(path)
    ask.get(path, Range="bytes=0-0")
    for _ in range(3):  # not the beginning, not the content, not to be counted
        ask.get(path, Range="bytes=1-1")
        ask.head(path)
        ask.get(f"{path}?skipUpdateStats=true")
    stats = ask.get(f"/api/storage{path}?stats").json()
    assert (stats["downloadCount"], stats["lastDownloadedBy"]) == (2, "admin")
    assert stats["lastDownloaded"] > 1_600_000_000_000
    assert ask.get(f"/api/storage/{REPO}/nope?stats").message == "Unable to find item path"


def test_the_newest_change_below(ask: Requests) -> None:
    ask("PUT", f"/{REPO}/a/b/z", b"z", {"Last-Modified": "Fri, 01 Jan 2100 00:00:00 GMT"})
    reply = ask.get(f"/api/storage/{REPO}/a?lastModified")
    assert reply.json() == {
        "uri": f"{ask.server.url}/api/storage/{REPO}/a/b/z",
        "lastModified": "2100-01-01T00:00:00.000+0000",
    }
    assert reply.headers["Last-Modified"] == "Fri, 01 Jan 2100 00:00:00 GMT"


def test_repositories(ask: Requests) -> None:
    row = {
        "key": REPO,
        "type": "LOCAL",
        "url": f"{ask.server.url}/{REPO}",
        "packageType": "Generic",
    }
    assert ask.get("/api/repositories").json() == [row]
    assert ask.get("/api/repositories?type=local&packageType=generic").json() == [row]
    assert ask.get("/api/repositories?type=remote").json() == []
    assert ask.get("/api/repositories?type=odd").json() == []
    reply = ask.put("/api/repositories/x", b'{"rclass":"local","description":"d","xrayIndex":true}')
    assert (reply.status, reply.body.strip()) == (200, b"Successfully created repository 'x'")
    config = ask.get("/api/repositories/x").json()
    assert (config["key"], config["rclass"], config["packageType"]) == ("x", "local", "generic")
    assert (config["description"], config["xrayIndex"]) == ("d", True)
    assert ask.head("/api/repositories/x").status == 200
    assert ask.post("/api/repositories/x", b'{"notes":"n"}').status == 200
    config = ask.get("/api/repositories/x").json()
    assert (config["description"], config["notes"]) == ("d", "n")
    ask.put("/x/a", b"x")
    assert ask.delete("/api/repositories/x").status == 200
    assert ask.head("/api/repositories/x").status == 400
    assert ask.get("/x/a").status == 404
    for key, body in (
        ("x-cache", b""),
        ("api", b""),
        (REPO.upper(), b""),
        ("y", b"["),
        ("y", b'{"rclass":"virtual"}'),
        ("y", b'{"key":"z"}'),
    ):
        assert ask.put(f"/api/repositories/{key}", body).status == 400
    assert ask.delete("/api/repositories/nope").status == 404
    with pytest.raises(ConfigError, match="Invalid repository key"):
        ask.server.create_repository("a/b")


def test_system(ask: Requests) -> None:
    ping = ask.get("/api/system/ping")
    assert (ping.body, ping.headers["Content-Type"]) == (b"OK", "text/plain")
    version = ask.get("/api/system/version").json()
    assert list(version) == ["version", "revision", "addons", "license"]
    assert version["version"].startswith("7.55.")
    assert ask.post("/api/system/usage", b'{"productId":"x"}').status == 200
    assert ask.get("/api/v1/uploads/config").json() == {"supported": False}
    assert ask.post("/api/storageinfo/calculate").status == 202
    summary = ask.get("/api/storageinfo").json()
    assert summary["binariesSummary"]["artifactsCount"] == "2"
    row, total = summary["repositoriesSummaryList"]
    assert (row["repoKey"], row["filesCount"], row["usedSpaceInBytes"]) == (REPO, 2, 9)
    assert (total["repoKey"], total["foldersCount"]) == ("TOTAL", 2)


def test_anonymous_users(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "open", anonymous=True) as server:
        server.create_repository(REPO)
        ask = Requests(server)
        token, ask.authorization = ask.authorization, {}
        assert ask.put(f"/{REPO}/a;k=v", b"x").json()["createdBy"] == "anonymous"
        assert ask.get(f"/{REPO}/a").body == b"x"
        assert ask.patch(f"/api/metadata/{REPO}/a", {"props": {"k": "w"}}).status == 204
        refused = ask.get(f"/api/storage/{REPO}?list")
        assert refused.status == 403
        assert refused.message == "This resource is available to authenticated users only."
        assert ask.put("/api/repositories/x").status == 403
        assert ask.get("/api/storageinfo").status == 403
        assert ask.delete(f"/{REPO}/a").status == 204
        ask.authorization = {"Authorization": "Bearer wrong"}
        assert ask.get(f"/{REPO}/").status == 401
        ask.authorization = token
        assert ask.tree() == {}
