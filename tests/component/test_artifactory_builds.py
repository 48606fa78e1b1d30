"""Builds: the document, and publishing it to the embedded server."""

import pytest

from jfs.artifactory import builds
from jfs.config import Build
from jfs.errors import NotFound, ProtocolViolation
from jfs.model import Checksums, FileInfo, RepoPath
from jfs.server import EmbeddedServer, Fault
from tests.component.test_client import client_of, settings_of
from tests.conftest import REPO

STARTED_MS = 1_708_795_259_007  # 2024-02-24T17:20:59.007Z
BUILD = Build("train bert/ü", "42/7", STARTED_MS)
SHA1, SHA256 = "0a" * 20, "1b" * 32


def info(path: str, **sums: str) -> FileInfo:
    return FileInfo(RepoPath(REPO, path), 3, Checksums(**sums), 0)


def test_the_document_says_what_is_known() -> None:
    document = builds.document(
        BUILD,
        [info("nlp/bert/2.0/model.onnx", sha1=SHA1, sha256=SHA256), info("README")],
        [info("nlp/bert/1.0/model.onnx", sha1=SHA1)],
        version="9.9",
        url="https://ci.example/7",
        vcs_revision="abc",
    )
    assert document == {
        "version": "1.0.1",
        "name": "train bert/ü",
        "number": "42/7",
        "type": "GENERIC",
        "agent": {"name": "jfs", "version": "9.9"},
        "buildAgent": {"name": "jfs", "version": "9.9"},
        "started": "2024-02-24T17:20:59.007+0000",
        "modules": [
            {
                "id": "train bert/ü",
                "type": "generic",
                "artifacts": [
                    {
                        "name": "model.onnx",
                        "type": "onnx",
                        "path": "nlp/bert/2.0/model.onnx",
                        "sha1": SHA1,
                        "sha256": SHA256,
                        "originalDeploymentRepo": REPO,
                    },
                    {"name": "README", "path": "README", "originalDeploymentRepo": REPO},
                ],
                "dependencies": [
                    {"id": f"{REPO}/nlp/bert/1.0/model.onnx", "type": "onnx", "sha1": SHA1}
                ],
            }
        ],
        "url": "https://ci.example/7",
        "vcs": [{"revision": "abc"}],
    }


async def test_a_build_is_published_and_read_back(server: EmbeddedServer) -> None:
    document = builds.document(
        BUILD, [info("a/m.onnx", sha256=SHA256)], [info("b/m.onnx", sha1=SHA1)], version="9.9"
    )
    async with client_of(settings_of(server)) as client:
        await client.publish_build(document)
        found = await client.build(BUILD.name, BUILD.number)
        assert found.document == document
        assert (found.name, found.number) == (BUILD.name, BUILD.number)
        assert found.started == "2024-02-24T17:20:59.007+0000"
        assert found.url == f"{server.url}/api/build/train%20bert%2F%C3%BC/42%2F7"
        (artifact,), (dependency,) = found.artifacts, found.dependencies
        assert (artifact.module, artifact.name) == (BUILD.name, "m.onnx")
        assert artifact.place == f"{REPO}/a/m.onnx"
        assert artifact.checksums.sha256 == SHA256
        assert (dependency.place, dependency.checksums.sha1) == (f"{REPO}/b/m.onnx", SHA1)
        with pytest.raises(NotFound):
            await client.build(BUILD.name, "43")


async def test_an_answer_that_was_lost_is_asked_again(server: EmbeddedServer) -> None:
    fault = server.faults.add(Fault.drop("/api/build", method="PUT", times=1))
    async with client_of(settings_of(server)) as client:
        await client.publish_build(builds.document(BUILD, [], version="9.9"))
        assert fault.hits == 1
        assert (await client.build(BUILD.name, BUILD.number)).artifacts == []


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"buildInfo": 1}',
        b'{"buildInfo": {"modules": 1}}',
        b'{"buildInfo":{"modules":[1]}}',
    ],
)
async def test_an_answer_that_is_no_build(server: EmbeddedServer, body: bytes) -> None:
    server.faults.add(Fault.garbage("/api/build/*", body=body))
    async with client_of(settings_of(server)) as client:
        with pytest.raises(ProtocolViolation):
            await client.build("b", "1")


async def test_a_build_of_another_tool(server: EmbeddedServer) -> None:
    server.faults.add(
        Fault.garbage(
            "/api/build/*",
            body=b'{"buildInfo": {"name": "b", "number": "1", "modules": [{"id": "m",'
            b' "artifacts": [{"name": "x.jar", "sha1": "nonsense"}], "dependencies": null}]}}',
        )
    )
    async with client_of(settings_of(server)) as client:
        found = await client.build("b", "1")
    (artifact,) = found.artifacts
    assert (artifact.place, artifact.checksums) == ("x.jar", Checksums())
    assert found.dependencies == []
