"""``jfs ls``, ``find`` and ``props``: with a mount and without."""

import json
import os
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.mount.commands import run_here
from tests.mount.conftest import Mounter
from tests.mount.mounting import run_jfs

REPO = "ml-models-local"


@pytest.fixture
def models(server: EmbeddedServer) -> EmbeddedServer:
    approved = {"env": ["production"], "approved-by": ["alice"]}
    server.deploy(REPO, "nlp/bert/1.0/model.onnx", b"1", {"env": ["staging"]})
    server.deploy(REPO, "nlp/bert/2.0/model.onnx", b"22", approved)
    server.deploy(REPO, "nlp/bert/2.0/a name, with=marks.txt", b"333")
    return server


def run(server: EmbeddedServer, *arguments: str, code: int = 0) -> str:
    result = run_jfs(*arguments, JF_URL=server.url, JF_ACCESS_TOKEN=server.token)
    assert result.returncode == code, result
    return result.stdout if code == 0 else result.stderr


def test_ls(models: EmbeddedServer) -> None:
    lines = run(models, "ls", f"{REPO}/nlp/bert/2.0").splitlines()
    assert lines[0].split() == ["SIZE", "MODIFIED", "NAME"]
    assert lines[1].startswith("3 bytes")
    assert lines[1].endswith("a name, with=marks.txt")
    assert run(models, "ls", f"{REPO}/nlp").splitlines()[1].split()[-1] == "bert/"
    (row,) = json.loads(run(models, "ls", "--json", f"{REPO}/nlp/bert/2.0/model.onnx"))
    assert (row["path"], row["size"]) == (f"{REPO}/nlp/bert/2.0/model.onnx", 2)
    assert "no such file or folder" in run(models, "ls", f"{REPO}/nope", code=1)


def test_who_has_no_credentials_is_told_where_to_give_them(models: EmbeddedServer) -> None:
    refused = run_jfs("ls", REPO, JF_URL=models.url)
    assert refused.returncode == 1
    (said,) = refused.stderr.splitlines()
    assert said.endswith("give a token with --token-file or JF_ACCESS_TOKEN")


def test_find(models: EmbeddedServer) -> None:
    assert run(models, "find", REPO, "--prop", "env=production").splitlines() == [
        f"{REPO}/nlp/bert/2.0/model.onnx"
    ]
    found = run(models, "find", f"{REPO}/nlp", "--name", "*.onnx", "--prop", "env=*").splitlines()
    assert found == [f"{REPO}/nlp/bert/1.0/model.onnx", f"{REPO}/nlp/bert/2.0/model.onnx"]
    assert run(models, "find", REPO, "--prop", "env=nowhere") == ""
    assert run(models, "find", REPO, "--newer", "2999-01-01") == ""
    assert len(run(models, "find", REPO, "--newer", "1d").splitlines()) == 3
    assert run(models, "find", REPO, "--older", "1d") == ""
    assert run(models, "find", REPO, "--type", "folder", "--name", "bert", "-0") == (
        f"{REPO}/nlp/bert\0"
    )
    both = ("--prop", "env=production", "--prop", "approved-by=alice")
    (row,) = json.loads(run(models, "find", REPO, "--json", *both))
    assert row["properties"] == {"approved-by": ["alice"], "env": ["production"]}
    for bad in (("--prop", "env"), ("--newer", "soon"), ("--type", "socket")):
        run(models, "find", REPO, *bad, code=2)


def test_props(models: EmbeddedServer) -> None:
    path = f"{REPO}/nlp/bert/1.0/model.onnx"
    run(models, "props", "set", path, "env=production", r"note=a\,b,c", "empty=")
    assert json.loads(run(models, "props", "get", "--json", path)) == {
        "empty": [""],
        "env": ["production"],
        "note": ["a,b", "c"],
    }
    assert json.loads(run(models, "props", "get", "--json", path, "env")) == {"env": ["production"]}
    table = run(models, "props", "get", path).splitlines()
    assert table[-1].split() == ["note", "a\\,b,c"]
    run(models, "props", "rm", path, "note", "empty", "absent")
    assert json.loads(run(models, "props", "get", "--json", path)) == {"env": ["production"]}
    assert "has no property absent" in run(models, "props", "get", path, "absent", code=1)
    assert "white space" in run(models, "props", "set", path, "a b=c", code=2)
    assert "read-only" in run(models, "props", "set", path, "jfs.sha256=c", code=2)
    assert "KEY=VALUE" in run(models, "props", "set", path, "env", code=2)
    run(models, "props", "get", f"{REPO}/nope", code=1)
    run(models, "props", "set", f"{REPO}/nope", "a=b", code=1)


def test_props_of_a_folder_and_all_below(models: EmbeddedServer) -> None:
    folder = f"{REPO}/nlp/bert/2.0"
    run(models, "props", "set", folder, "owner=team")
    assert json.loads(run(models, "props", "get", "--json", folder)) == {"owner": ["team"]}
    assert run(models, "find", REPO, "--prop", "owner=team") == ""
    run(models, "props", "set", "--recursive", folder, "owner=team")
    assert len(run(models, "find", REPO, "--prop", "owner=team").splitlines()) == 2
    run(models, "props", "rm", "--recursive", folder, "owner")
    assert run(models, "find", REPO, "--prop", "owner=team", "--type", "any") == ""


@pytest.mark.fuse
def test_paths_of_a_mount(models: EmbeddedServer, mounter: Mounter) -> None:
    mount = mounter(f"{models.url}/{REPO}", JF_ACCESS_TOKEN=models.token)
    model = mount.root / "nlp/bert/2.0/model.onnx"
    found = run(models, "find", str(mount.root), "--prop", "env=production").splitlines()
    assert found == [str(model)]
    assert Path(found[0]).read_bytes() == b"22"
    run(models, "props", "set", str(model), "env=retired")
    assert os.getxattr(model, "user.env") == b"retired"
    assert run(models, "ls", str(mount.root / "nlp")).splitlines()[1].split()[-1] == "bert/"


def test_ls_without_a_path_lists_repositories(models: EmbeddedServer) -> None:
    models.create_repository("hf", upstream="http://127.0.0.1:9/")
    lines = run_here(models, "ls").splitlines()
    assert lines[0].split() == ["KIND", "PACKAGES", "NAME"]
    assert [line.split() for line in lines[1:]] == [
        ["remote", "generic", "hf/"],
        ["local", "generic", f"{REPO}/"],
    ]
    rows = json.loads(run_here(models, "ls", "--json", models.url))
    assert [row["path"] for row in rows] == [f"{models.url}/hf", f"{models.url}/{REPO}"]
    assert "JF_URL" in run_here(models, "ls", code=2, JF_URL="")
    assert "no such repository" in run_here(models, "ls", "absent", code=1)
    for outside in (".", "./nlp", ".."):
        assert "in no mount of jfs" in run_here(models, "ls", outside, code=2)


def test_find_of_what_is_not_there_is_an_error(models: EmbeddedServer) -> None:
    assert "no such repository" in run_here(models, "find", "absent", "--prop", "a=b", code=1)
    assert "no such file or folder" in run_here(models, "find", f"{REPO}/absent", code=1)
    assert "JF_URL" in run_here(models, "find", code=2, JF_URL="")
    everywhere = run_here(models, "find", "--name", "model.onnx").splitlines()
    assert everywhere == [f"{REPO}/nlp/bert/{n}.0/model.onnx" for n in (1, 2)]
    one = f"{REPO}/nlp/bert/2.0/model.onnx"
    assert run_here(models, "find", one).splitlines() == [one]
    assert run_here(models, "find", one, "--prop", "env=staging") == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("find", f"{REPO}/nlp/*.onnx"), f"jfs find {REPO}/nlp --name '*.onnx'"),
        (("find", f"{REPO}/*/2.0/model.onnx"), f"jfs find {REPO} --name 'model.onnx'"),
        (("find", "ml-*"), "jfs ls"),
        (("find", REPO, "--prop", "e*=production"), "wildcards are for the value"),
        (("find", REPO, "--name", "nlp/*.onnx"), "give folders as PATH"),
        (("ls", f"{REPO}/nlp/b?rt"), f"jfs find {REPO}/nlp --name 'b?rt'"),
        (("warm", f"{REPO}/nlp/*"), "a PATH holds no wildcards"),
        (("props", "set", f"{REPO}/nlp/*", "a=b"), "a PATH holds no wildcards"),
        (("cp", f"{REPO}/nlp/bert/*", f"{REPO}/x"), "a PATH holds no wildcards"),
        (("mv", f"{REPO}/nlp/bert", f"{REPO}/x*"), "a PATH holds no wildcards"),
        (("promote", f"{REPO}/nlp/bert/*", "--prop", "a=b"), "a PATH holds no wildcards"),
    ],
)
def test_wildcards_on_the_wrong_side(
    models: EmbeddedServer, arguments: tuple[str, ...], hint: str
) -> None:
    assert hint in run_here(models, *arguments, code=2)


def test_warm_of_what_is_not_there_is_an_error(models: EmbeddedServer, tmp_path: Path) -> None:
    models.create_repository("hf", upstream="http://127.0.0.1:9/")
    cache = ("--cache-dir", str(tmp_path / "cache"))
    for path in (f"{REPO}/absent", f"{REPO}/absent.bin", "absent"):
        assert f"{path}: no such" in run_here(models, "warm", *cache, path, code=1)
    assert "nothing of it is cached" in run_here(models, "warm", *cache, "hf", code=1)
    found = run_here(models, "warm", *cache, "--json", f"{REPO}/nlp/bert/2.0")
    assert (json.loads(found)["files"], json.loads(found)["failures"]) == (2, [])


def test_nothing_is_made_in_a_remote_repository(models: EmbeddedServer) -> None:
    """Told before upstream is asked what is there."""
    models.create_repository("hf", upstream="http://127.0.0.1:9/")
    source = f"{REPO}/nlp/bert/2.0"
    for command in (("cp", "-r"), ("mv",), ("promote",)):
        for target in ("hf/new", "hf/org/model/new"):
            told = run_here(models, *command, source, target, code=1)
            assert "hf is a remote repository" in told
    for command in (("get",), ("set",)):
        told = run_here(models, "props", *command, f"{REPO}/absent", "a=b", code=1)
        assert "no such file or folder" in told
