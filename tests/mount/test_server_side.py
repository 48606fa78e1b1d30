"""``jfs cp``, ``mv`` and ``promote``: zero bytes, the rules of cp(1), nothing half-done."""

import json
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.mount.commands import Content, run_here
from tests.mount.conftest import Mounter
from tests.mount.mounting import run_jfs

REPO, PROD = "ml-models-local", "prod-local"
BERT = f"{REPO}/nlp/bert"
EXTRA = (1 << 20) * b"x"


@pytest.fixture
def models(server: EmbeddedServer) -> EmbeddedServer:
    server.create_repository(PROD)
    server.deploy(REPO, "nlp/bert/1.0.0/model.onnx", b"1", {"env": ["staging"]})
    server.deploy(REPO, "nlp/bert/2.0.0/model.onnx", EXTRA, {"env": ["staging"], "acc": ["0.9"]})
    server.deploy(REPO, "nlp/bert/2.0.0/sub/config.json", b"{}")
    return server


run = run_here


@pytest.fixture
def content(models: EmbeddedServer) -> Content:
    return Content(models)


# cp and mv


def test_a_file_is_copied_without_moving_bytes(models: EmbeddedServer, content: Content) -> None:
    models.stats.reset()
    (row,) = json.loads(
        run(models, "cp", "--json", f"{BERT}/2.0.0/model.onnx", f"{PROD}/new/folder/m.onnx")
    )
    assert row["target"] == f"{PROD}/new/folder/m.onnx"
    assert row["result"] == "copied"
    assert models.stats.bytes_sent < 64 * 1024
    assert models.stats.bytes_received < 64 * 1024
    assert content.properties(f"{PROD}/new/folder/m.onnx")["acc"] == ["0.9"]
    assert content.tree(f"{BERT}/2.0.0") == ["model.onnx", "sub", "sub/config.json"]


def test_a_folder_gets_the_name_or_goes_inside(models: EmbeddedServer, content: Content) -> None:
    whole = ["model.onnx", "sub", "sub/config.json"]
    run(models, "cp", "-r", f"{BERT}/2.0.0", f"{PROD}/bert")
    assert content.tree(f"{PROD}/bert") == whole
    # It is there now: as with cp -r, a second copy goes inside; a third one merges into that.
    for _ in range(2):
        run(models, "cp", "-r", f"{BERT}/2.0.0", f"{PROD}/bert")
        assert content.tree(f"{PROD}/bert/2.0.0") == whole
    assert len(content.tree(f"{PROD}/bert")) == 7
    run(models, "cp", "-r", f"{BERT}/2.0.0/", f"{PROD}/")
    run(models, "cp", "-r", f"{BERT}/2.0.0/", f"{PROD}/")
    assert content.tree(f"{PROD}/2.0.0") == whole


def test_several_go_into_a_folder(models: EmbeddedServer, content: Content) -> None:
    one, two = f"{BERT}/1.0.0", f"{BERT}/2.0.0"
    assert "a folder only" in run(models, "cp", "-r", one, two, f"{PROD}/bert", code=1)
    text = run(models, "cp", "-r", one, two, PROD)
    assert text.splitlines() == [
        f"copied {one} -> {PROD}/1.0.0",
        f"copied {two} -> {PROD}/2.0.0",
    ]
    error = run(models, "mv", f"{one}/model.onnx", f"{two}/model.onnx", PROD, code=1)
    assert "another of this name" in error
    assert content.tree(f"{PROD}") == [
        *("1.0.0", "1.0.0/model.onnx", "2.0.0", "2.0.0/model.onnx"),
        *("2.0.0/sub", "2.0.0/sub/config.json", "model.onnx"),
    ]
    # What can be done is done, and what cannot is said.
    error = run(models, "cp", f"{one}/nope", f"{two}/sub/config.json", PROD, code=1)
    assert error == f"jfs: {one}/nope: no such file or folder on the server\n"
    assert "config.json" in content.tree(PROD)


def test_a_folder_needs_recursive(models: EmbeddedServer, content: Content) -> None:
    assert "give -r" in run(models, "cp", f"{BERT}/2.0.0", f"{PROD}/bert", code=1)
    assert content.tree(PROD) == []


def test_what_is_there_is_replaced_or_left_alone(models: EmbeddedServer, content: Content) -> None:
    one, two = f"{BERT}/1.0.0/model.onnx", f"{BERT}/2.0.0/model.onnx"
    assert run(models, "cp", "-n", two, one) == f"skipped {two} -> {one}\n"
    run(models, "cp", two, one)
    assert content.read(one) == EXTRA
    assert content.properties(one)["acc"] == ["0.9"]
    run(models, "cp", two, f"{BERT}/sub")
    error = run(models, "mv", f"{BERT}/sub", f"{BERT}/2.0.0", code=1)
    assert error == f"jfs: {BERT}/sub: {BERT}/2.0.0/sub: is a folder, which a file cannot replace\n"
    error = run(models, "mv", f"{BERT}/2.0.0/sub", BERT, code=1)
    assert error == f"jfs: {BERT}/2.0.0/sub: {BERT}/sub: is a file, which a folder cannot replace\n"


def test_a_move(models: EmbeddedServer, content: Content) -> None:
    assert run(models, "mv", f"{BERT}/2.0.0", f"{PROD}/bert/2.0.0") == (
        f"moved {BERT}/2.0.0 -> {PROD}/bert/2.0.0\n"
    )
    assert content.tree(BERT) == ["1.0.0", "1.0.0/model.onnx"]
    run(models, "mv", f"{BERT}/1.0.0", f"{PROD}/bert")
    assert content.tree(f"{PROD}/bert") == [
        *("1.0.0", "1.0.0/model.onnx", "2.0.0", "2.0.0/model.onnx"),
        *("2.0.0/sub", "2.0.0/sub/config.json"),
    ]
    assert content.tree(REPO) == []  # the server takes folders away that are left empty


def test_a_folder_that_is_not_empty_is_not_replaced(
    models: EmbeddedServer, content: Content
) -> None:
    run(models, "cp", "-r", f"{BERT}/1.0.0", f"{PROD}/1.0.0")
    error = run(models, "mv", f"{BERT}/1.0.0", PROD, code=1)
    assert error == f"jfs: {BERT}/1.0.0: {PROD}/1.0.0: is there, and not empty\n"
    content.make_folder(f"{PROD}/empty/1.0.0")
    run(models, "mv", f"{BERT}/1.0.0", f"{PROD}/empty")
    assert content.tree(f"{PROD}/empty") == ["1.0.0", "1.0.0/model.onnx"]


def test_a_dry_run_changes_nothing(models: EmbeddedServer, content: Content) -> None:
    assert run(models, "mv", "--dry-run", f"{BERT}/2.0.0", PROD) == (
        f"would move {BERT}/2.0.0 -> {PROD}/2.0.0\n"
    )
    promote = run(models, "promote", "--dry-run", f"{BERT}/2.0.0", f"{PROD}/b", "--prop", "env=p")
    assert promote.splitlines() == [
        f"would be copied {BERT}/2.0.0 -> {PROD}/b",
        f"would be set env=p on {PROD}/b",
    ]
    assert content.tree(PROD) == []


def test_mistakes(models: EmbeddedServer, content: Content) -> None:
    model = f"{BERT}/1.0.0/model.onnx"
    cases = [
        (("cp", f"{BERT}/nope", PROD), 1, "no such file or folder"),
        (("cp", f"{model}/", PROD), 1, "is a file, not a folder"),
        (("cp", model, f"{PROD}/nope/"), 1, "no such folder"),
        (("cp", model, f"{BERT}/2.0.0/model.onnx/"), 1, "is a file, not a folder"),
        (("cp", model, "nowhere-local"), 1, "no such repository"),
        (("cp", model, "nowhere-local/x"), 1, "nowhere-local"),
        (("cp", model, BERT + "/1.0.0"), 1, "is the same as"),
        (("cp", model, model), 1, "is the same as"),
        (("mv", f"{BERT}/1.0.0", f"{BERT}/1.0.0/sub/x"), 1, "cannot go into itself"),
        (("cp", "-r", f"{BERT}/1.0.0", f"{BERT}/1.0.0"), 1, "cannot go into itself"),
        (("cp", "-r", REPO, PROD), 2, "is the repository"),
        (("cp", model, f"{PROD}/a|b"), 2, "Artifactory forbids"),
        (("cp", model, f"{PROD}/a//b"), 2, "is not a name"),
        (("cp", model, models.url), 2, "is a whole server"),
        (("cp", model, "http://other.example/artifactory/r"), 2, "between servers"),
        (("promote", f"{BERT}/nope", f"{PROD}/x"), 1, "no such file or folder"),
        (("promote", f"{BERT}/1.0.0"), 2, "nothing to do"),
        (("promote", f"{BERT}/1.0.0", "--move", "--prop", "a=b"), 2, "give DST"),
        (("promote", f"{BERT}/1.0.0", f"{BERT}/1.0.0"), 2, "leave DST out"),
        (("promote", f"{BERT}/1.0.0", PROD), 2, "the place of a repository"),
        (("promote", f"{BERT}/1.0.0", f"{PROD}/x", "--prop", "a"), 2, "KEY=VALUE"),
        (("promote", f"{BERT}/1.0.0", f"{BERT}/1.0.0/x"), 1, "inside the other"),
        (("promote", f"{BERT}/1.0.0", "--unset-siblings", "env", "--prop", "a=b"), 2, "--prop env"),
    ]
    for arguments, code, says in cases:
        assert says in run(models, *arguments, code=code), arguments
    assert content.tree(PROD) == []


@pytest.mark.fuse
def test_a_mount_shows_it_at_once(models: EmbeddedServer, mounter: Mounter) -> None:
    mount = mounter(
        models.url, "--attr-ttl", "600", "--negative-ttl", "600", JF_ACCESS_TOKEN=models.token
    )
    root = mount.root
    old, new = root / BERT / "2.0.0", root / PROD / "bert/2.0.0"
    assert old.is_dir()
    assert not (root / PROD / "bert").exists()
    run(models, "mv", str(old), str(new))
    assert (new / "model.onnx").read_bytes() == EXTRA
    assert not old.exists()
    # Named by their places on the server, mounts of it are found all the same.
    run(models, "mv", f"{PROD}/bert/2.0.0", f"{BERT}/3.0.0")
    assert not new.exists()
    assert (root / BERT / "@latest/model.onnx").read_bytes() == EXTRA
    run(models, "promote", f"{BERT}/3.0.0", f"{PROD}/bert/3.0.0", "--prop", "env=production")
    assert (root / PROD / "bert/@env=production/model.onnx").read_bytes() == EXTRA


def test_a_copy_out_of_a_remote_repository(
    models: EmbeddedServer, content: Content, tmp_path: Path
) -> None:
    with EmbeddedServer(tmp_path / "upstream", anonymous=True) as upstream:
        upstream.create_repository("models")
        upstream.deploy("models", "org/m/model.onnx", EXTRA)
        models.create_repository("hub", upstream=f"{upstream.url}/models")
        run(models, "cp", "hub/org/m/model.onnx", f"{PROD}/m/model.onnx")
    assert content.read(f"{PROD}/m/model.onnx") == EXTRA
    run(models, "promote", "hub/org/m", f"{PROD}/n", "--prop", "env=production")
    assert content.tree(f"{PROD}/n") == ["model.onnx"]


# promote


def test_promote_roll_back_demote(models: EmbeddedServer, content: Content) -> None:
    prod = f"{PROD}/nlp/bert"
    options = ("--prop", "env=production", "--unset-siblings", "env")
    run(models, "promote", f"{BERT}/1.0.0", f"{prod}/1.0.0", *options)
    assert content.carriers(PROD, "env", "production") == [
        *(f"{prod}/1.0.0", f"{prod}/1.0.0/model.onnx")
    ]
    more = ("--prop", "approved-by=alice,bob")
    text = run(models, "promote", f"{BERT}/2.0.0", f"{prod}/2.0.0", *options, *more)
    assert text.splitlines() == [
        f"copied {BERT}/2.0.0 -> {prod}/2.0.0",
        f"set env=production approved-by=alice,bob on {prod}/2.0.0",
        f"unset env on {prod}/1.0.0",
        f"unset env on {prod}/1.0.0/model.onnx",
    ]
    new = [f"{prod}/2.0.0{rest}" for rest in ("", "/model.onnx", "/sub", "/sub/config.json")]
    assert content.carriers(PROD, "env", "production") == new
    assert content.properties(f"{prod}/2.0.0/model.onnx") == {
        "acc": ["0.9"],
        "approved-by": ["alice", "bob"],
        "env": ["production"],
    }
    assert content.properties(f"{BERT}/2.0.0/model.onnx")["env"] == ["staging"]
    # Back to the version before.
    row = json.loads(run(models, "promote", "--json", f"{prod}/1.0.0", *options))
    assert row["result"] == "in place"
    assert row["unset"] == {path: ["env"] for path in new}
    assert content.carriers(PROD, "env", "production") == [
        *(f"{prod}/1.0.0", f"{prod}/1.0.0/model.onnx")
    ]
    run(models, "props", "rm", "--recursive", f"{prod}/1.0.0", "env")
    assert content.carriers(PROD, "env", "production") == []


def test_only_the_value_is_taken_from_siblings(models: EmbeddedServer, content: Content) -> None:
    models.deploy(PROD, "b/1/m", b"1", {"env": ["production", "canary"]})
    models.deploy(PROD, "b/2/m", b"2", {"env": ["canary"]})
    models.deploy(PROD, "c/1/m", b"1", {"env": ["production"]})
    run(models, "promote", f"{PROD}/b/2", "--prop", "env=production", "--unset-siblings", "env")
    assert content.properties(f"{PROD}/b/1/m")["env"] == ["canary"]
    assert content.properties(f"{PROD}/b/2/m")["env"] == ["production"]
    assert content.properties(f"{PROD}/c/1/m")["env"] == ["production"]


def test_a_file_is_promoted(models: EmbeddedServer, content: Content) -> None:
    old, new = f"{BERT}/2.0.0/model.onnx", f"{PROD}/bert/2.0.0.onnx"
    run(models, "promote", "--move", old, new, "--prop", "env=production")
    assert content.properties(new) == {"acc": ["0.9"], "env": ["production"]}
    assert content.tree(f"{BERT}/2.0.0") == ["sub", "sub/config.json"]
    run(models, "promote", "--replace", f"{BERT}/1.0.0/model.onnx", new)
    assert content.properties(new) == {"env": ["staging"]}
    assert content.tree(f"{PROD}/bert") == ["2.0.0.onnx"]


@pytest.mark.parametrize("how", [(), ("--move",)])
def test_what_is_there_is_replaced_only_if_asked(
    models: EmbeddedServer, content: Content, how: tuple[str, ...]
) -> None:
    target = f"{PROD}/bert/1"
    models.deploy(PROD, "bert/1/old.onnx", b"old")
    error = run(models, "promote", f"{BERT}/2.0.0", target, *how, code=1)
    assert error.startswith(f"jfs: {target}: is there already: --replace")
    assert content.tree(f"{PROD}/bert") == ["1", "1/old.onnx"]
    text = run(models, "promote", "--replace", f"{BERT}/2.0.0", target, *how)
    assert "in place of what was there" in text
    assert content.tree(f"{PROD}/bert") == [*("1", "1/model.onnx", "1/sub", "1/sub/config.json")]
    kept = [] if how else ["model.onnx", "sub", "sub/config.json"]
    assert content.tree(f"{BERT}/2.0.0") == kept


def test_a_replacement_that_fails_leaves_the_old_one(
    models: EmbeddedServer, content: Content
) -> None:
    target = f"{PROD}/bert/1"
    models.deploy(PROD, "bert/1/old.onnx", b"old", {"env": ["production"]})
    command = ("promote", "--replace", f"{BERT}/2.0.0", target, "--prop", "env=production")
    before = content.tree(f"{PROD}/bert")
    for fault in (
        Fault.status(403, "/api/copy/*"),
        Fault.status(403, "/api/move/*"),  # the old one aside
        Fault.status(403, "/api/move/*jfs-new*"),  # the new one into place: the old one comes back
    ):
        models.faults.add(fault)
        error = run(models, *command, code=1)
        models.faults.clear()
        assert fault.hits == 1
        assert error.startswith(f"jfs: {target}: is as it was: 403")
        assert content.tree(f"{PROD}/bert") == before
        assert content.properties(f"{target}/old.onnx") == {"env": ["production"]}
    run(models, *command)
    assert content.tree(target) == ["model.onnx", "sub", "sub/config.json"]


def test_a_promotion_that_fails_late_says_what_is_left(
    models: EmbeddedServer, content: Content
) -> None:
    models.deploy(PROD, "b/1/m", b"1", {"env": ["production"]})
    models.deploy(PROD, "b/2/m", b"2", {"env": ["staging"]})
    command = ("promote", "--replace", f"{BERT}/2.0.0", f"{PROD}/b/2", "--prop", "env=production")
    models.faults.add(Fault.status(403, "/api/metadata/*/b/2"))
    assert "is there, but its properties are not set: 403" in run(models, *command, code=1)
    models.faults.clear()
    left = [row for row in content.tree(f"{PROD}/b") if "jfs-old" in row]
    assert left == []
    models.faults.add(Fault.status(403, "/api/metadata/*/b/1/m"))
    error = run(models, *command, "--unset-siblings", "env", code=1)
    assert f"is promoted, but {PROD}/b/1/m keeps env: 403" in error
    models.faults.clear()
    models.faults.add(Fault.status(403, f"/{PROD}/b/*jfs-old*", method="DELETE"))
    result = run_jfs(*command, JF_URL=models.url, JF_ACCESS_TOKEN=models.token)
    assert result.returncode == 1
    assert "the old one could not be removed, and is at prod-local/b/.2.jfs-old-" in result.stderr
    models.faults.clear()
    both = (Fault.status(403, "/api/move/*jfs-new*"), Fault.status(403, "/api/move/*jfs-old*"))
    for fault in both:
        models.faults.add(fault)
    error = run(models, *command, code=1)
    assert "is gone for now: the old one is at prod-local/b/.2.jfs-old-" in error
    models.faults.clear()
    old = next(word for word in error.replace(",", " ").split() if "jfs-old" in word)
    run(models, "mv", old, f"{PROD}/b/2")
    assert content.tree(f"{PROD}/b/2") == ["model.onnx", "sub", "sub/config.json"]


@pytest.mark.fuse
def test_paths_of_a_mount(
    models: EmbeddedServer, content: Content, mounter: Mounter, tmp_path: Path
) -> None:
    mount = mounter(f"{models.url}/{REPO}", JF_ACCESS_TOKEN=models.token)
    model = mount.root / "nlp/bert/1.0.0/model.onnx"
    run(models, "cp", str(model), str(mount.root / "copy.onnx"))
    assert (mount.root / "copy.onnx").read_bytes() == b"1"
    run(models, "cp", str(model), f"{models.url}/{PROD}/x.onnx")
    assert content.tree(PROD) == ["x.onnx"]
