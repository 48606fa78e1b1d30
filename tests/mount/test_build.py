"""``jfs build``: from what a mount wrote to build info on the server."""

import json
import os
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.mount.commands import run_here
from tests.mount.conftest import Mounter
from tests.mount.mounting import run_jfs

REPO = "ml-models-local"
BUILD = {"JFROG_CLI_BUILD_NAME": "train bert", "JFROG_CLI_BUILD_NUMBER": "42"}


run = run_here


def tags(number: str = "42", stamp: str = "1708795259007") -> dict[str, list[str]]:
    return {
        "build.name": ["train bert"],
        "build.number": [number],
        "build.timestamp": [stamp],
    }


@pytest.fixture
def built(server: EmbeddedServer) -> EmbeddedServer:
    server.deploy(REPO, "nlp/bert/1.0/model.onnx", b"base")
    server.deploy(REPO, "nlp/bert/1.0/vocab.txt", b"words")
    server.deploy(REPO, "nlp/bert/2.0/model.onnx", b"22", tags())
    server.deploy(REPO, "nlp/bert/2.0/config.json", b"{}", tags(stamp="1708795258000"))
    server.deploy(REPO, "nlp/bert/3.0/model.onnx", b"333", tags(number="43"))
    return server


@pytest.mark.fuse
def test_what_a_mount_wrote_is_a_build(server: EmbeddedServer, mounter: Mounter) -> None:
    mount = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token, **BUILD)
    folder = mount.root / "nlp/bert/2.0"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"trained")
    summary = json.loads(run(server, "build", "publish", "--json", str(mount.root), **BUILD))
    assert summary["artifacts"] == 1
    assert summary["address"] == f"{server.url}/api/build/train%20bert/42"
    document = json.loads(run(server, "build", "show", "--json", "train bert", "42"))
    (artifact,) = document["modules"][0]["artifacts"]
    assert artifact["path"] == "nlp/bert/2.0/model.onnx"
    assert artifact["sha256"] == os.getxattr(folder / "model.onnx", "user.jfs.sha256").decode()
    assert document["started"] < json.loads(run(server, "ls", "--json", REPO))[0]["modified"]


def test_publish_and_show(built: EmbeddedServer) -> None:
    name = ("--build-name", "train bert", "--build-number", "42")
    more = (
        "--dependency",
        f"{REPO}/nlp/bert/1.0",
        "--vcs-revision",
        "abc",
        "--url",
        "https://ci/7",
    )
    text = run(built, "build", "publish", *name, *more)
    assert text.startswith("published train bert 42: 2 artifacts, 2 dependencies: ")
    # Published again, without a scope: the build info itself is none of the artifacts.
    run(built, "build", "publish", *name, *more)
    document = json.loads(run(built, "build", "show", "--json", "train bert", "42"))
    assert document["started"] == "2024-02-24T17:20:58.000+0000"
    assert (document["url"], document["vcs"]) == ("https://ci/7", [{"revision": "abc"}])
    (module,) = document["modules"]
    assert [row["path"] for row in module["artifacts"]] == [
        "nlp/bert/2.0/config.json",
        "nlp/bert/2.0/model.onnx",
    ]
    assert all(len(row["md5"]) == 32 and len(row["sha1"]) == 40 for row in module["artifacts"])
    assert [row["id"] for row in module["dependencies"]] == [
        f"{REPO}/nlp/bert/1.0/model.onnx",
        f"{REPO}/nlp/bert/1.0/vocab.txt",
    ]
    lines = run(built, "build", "show", "train bert", "42").splitlines()
    assert lines[0].startswith("train bert 42, started 2024-02-24T17:20:58.000+0000: http")
    digest = module["artifacts"][0]["sha256"][:16]
    assert f"sha256:{digest}  {REPO}/nlp/bert/2.0/config.json" in [line.strip() for line in lines]


def test_a_dry_run_sends_nothing(built: EmbeddedServer) -> None:
    text = run(built, "build", "publish", "--dry-run", f"{REPO}/nlp", **BUILD)
    assert json.loads(text)["modules"][0]["id"] == "train bert"
    assert "no such build" in run(built, "build", "show", "train bert", "42", code=1)


def test_a_wildcard_in_a_name_is_none(built: EmbeddedServer) -> None:
    text = run(
        built,
        *("build", "publish", "--build-name", "train*", "--build-number", "42", REPO),
        code=1,
    )
    assert "build.name and build.number" in text


def test_mistakes(built: EmbeddedServer, tmp_path: Path) -> None:
    assert "JFROG_CLI_BUILD_NAME" in run(built, "build", "publish", code=2)
    one = ("build", "publish", "--build-name", "b")
    assert "both a name and a number" in run(built, *one, code=2)
    absent = run(built, *one, "--build-number", "1", f"{REPO}/nlp", code=1)
    assert f"{REPO}/nlp: nothing has these" in absent
    wrong = ("build", "publish", "--dependency", f"{REPO}/nope")
    assert "no such file" in run(built, *wrong, code=1, **BUILD)
    done = run_jfs("build", "show", "b", "1")
    assert (done.returncode, done.stderr) == (
        2,
        "jfs: which server: set JF_URL, or name a place on it (--help)\n",
    )
    done = run_jfs("build", "show", "b", "1", "--server", built.url, JF_ACCESS_TOKEN="wrong")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    built.faults.add(Fault.status(403, "/api/build", method="PUT"))
    assert "403" in run(built, "build", "publish", code=1, **BUILD)
