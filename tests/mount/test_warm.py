"""``jfs warm`` and ``jfs cache``, as a user runs them, beside a mount that uses the same cache."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jfs.formats import Layout, layout_of
from jfs.server import EmbeddedServer, Fault
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import run_jfs
from tests.weather.group import limited

MiB = 1024 * 1024
REPO = "ml-models-local"
ONE, OTHER = os.urandom(9 * MiB + 17), os.urandom(3 * MiB)


@pytest.fixture
def models(server: EmbeddedServer) -> EmbeddedServer:
    server.deploy(REPO, "llm/a/1/model.bin", ONE)
    server.deploy(REPO, "llm/a/1/other.bin", OTHER)
    server.deploy(REPO, "llm/a/1/empty.bin", b"")
    return server


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def warm(server: EmbeddedServer, tmp_path: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    done = run_jfs(
        *("warm", "--json", "--cache-dir", str(tmp_path / "cache"), *arguments),
        JF_ACCESS_TOKEN=server.token,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def cached(tmp_path: Path) -> list[dict[str, object]]:
    done = run_jfs("cache", "ls", "--json", "--cache-dir", str(tmp_path / "cache"))
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def test_a_warm_file_is_read_without_the_server(
    models: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    code, report = warm(models, tmp_path, "--check", f"{models.url}/{REPO}/llm")
    assert (code, report["files"], report["failures"]) == (0, 3, [])
    assert report["fetched_bytes"] == len(ONE) + len(OTHER)
    mounted = mounter(f"{models.url}/{REPO}", JF_ACCESS_TOKEN=models.token)
    models.stats.reset()
    assert (mounted.root / "llm/a/1/model.bin").read_bytes() == ONE
    assert models.stats.bytes_sent < 64 * 1024
    assert all(row["complete"] and row["verified"] for row in cached(tmp_path))


def test_a_second_run_fetches_only_what_is_missing(models: EmbeddedServer, tmp_path: Path) -> None:
    place = f"{models.url}/{REPO}/llm/a/1"
    models.faults.add(Fault.status(403, method="GET", path="*/a/1/other.bin"))
    code, report = warm(models, tmp_path, place)
    assert code == 1
    assert [failure["path"] for failure in report["failures"]] == [f"{REPO}/llm/a/1/other.bin"]  # type: ignore[attr-defined]
    models.faults.clear()
    code, report = warm(models, tmp_path, place)
    assert (code, report["fetched_bytes"]) == (0, len(OTHER))
    assert warm(models, tmp_path, place)[1]["fetched_bytes"] == 0


def test_a_path_in_a_mount_names_the_place_on_the_server(
    models: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    mounted = mounter(f"{models.url}/{REPO}", JF_ACCESS_TOKEN=models.token)
    code, report = warm(models, tmp_path, str(mounted.root / "llm/a/1/model.bin"))
    assert (code, report["fetched_bytes"]) == (0, len(ONE))


def test_bad_paths_and_caches_are_told_in_one_line(models: EmbeddedServer, tmp_path: Path) -> None:
    code, report = warm(models, tmp_path, f"{models.url}/{REPO}/not/there")
    assert code == 1
    assert "no such file" in report["failures"][0]["error"]  # type: ignore[index]
    code, report = warm(models, tmp_path, "--cache-size", "1M", f"{models.url}/{REPO}/llm")
    assert code == 1
    assert "--cache-size" in report["failures"][0]["error"]  # type: ignore[index]
    done = run_jfs("cache", "ls", "--cache-dir", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "no cache is there" in done.stderr
    done = run_jfs("cache", "evict", "--cache-dir", str(tmp_path / "cache"))
    assert done.returncode == 2
    done = run_jfs("cache", "pin", "zzz", "--cache-dir", str(tmp_path / "cache"))
    assert (done.returncode, "not in the cache" in done.stderr) == (2, True)


def test_check_drops_what_is_damaged(models: EmbeddedServer, tmp_path: Path) -> None:
    warm(models, tmp_path, f"{models.url}/{REPO}/llm")
    (data,) = (tmp_path / "cache").glob(f"??/sha256-{digest(ONE)}-*.data")
    with data.open("r+b") as file:
        file.seek(5 * MiB)
        byte = file.read(1)
        file.seek(5 * MiB)
        file.write(bytes([byte[0] ^ 1]))
    where = ("--cache-dir", str(tmp_path / "cache"))
    done = run_jfs("cache", "check", *where)
    assert done.returncode == 1
    assert digest(ONE) in done.stdout
    assert run_jfs("cache", "check", *where).returncode == 0
    code, report = warm(models, tmp_path, "--check", f"{models.url}/{REPO}/llm")
    assert (code, 0 < int(str(report["fetched_bytes"])) < len(ONE)) == (0, True)


def test_pinned_contents_stay(models: EmbeddedServer, tmp_path: Path) -> None:
    warm(models, tmp_path, f"{models.url}/{REPO}/llm")
    where = ("--cache-dir", str(tmp_path / "cache"))
    assert run_jfs("cache", "pin", digest(ONE)[:12], *where).returncode == 0
    done = run_jfs("cache", "evict", "--all", *where)
    assert (done.returncode, "pinned, kept" in done.stdout) == (0, True)
    assert [row["digest"] for row in cached(tmp_path)] == [f"sha256:{digest(ONE)}"]
    assert run_jfs("cache", "evict", digest(ONE), *where).returncode == 1
    assert run_jfs("cache", "evict", "--all", "--force", *where).returncode == 0
    assert cached(tmp_path) == []


def test_what_a_mount_has_open_is_not_evicted(mounted: MountedServer, tmp_path: Path) -> None:
    mounted.server.deploy(REPO, "m.bin", ONE)
    with (mounted.root / "m.bin").open("rb") as file:
        assert file.read(MiB) == ONE[:MiB]
        done = run_jfs("cache", "evict", "--all", "--cache-dir", str(tmp_path / "cache"))
        assert "in use, kept" in done.stdout
        assert file.read() == ONE[MiB:]


@pytest.fixture
def weights(server: EmbeddedServer, tmp_path: Path) -> Layout:
    """Two layers, q and k in each, of 1 MiB; and a file that tells nothing."""
    names = [f"model.layers.{n}.{each}_proj.weight" for n in range(2) for each in "qk"]
    tensors = {name: np.frombuffer(os.urandom(MiB), np.uint8).reshape(1024, -1) for name in names}
    path = tmp_path / "model.safetensors"
    save_file({**tensors, "model.norm.bias": np.arange(7, dtype=np.uint8)}, path)
    server.deploy(REPO, "w/model.safetensors", path.read_bytes())
    server.deploy(REPO, "w/config.json", b"{}")
    return layout_of(path.name, path.read_bytes(), path.stat().st_size)


@pytest.mark.parametrize(
    ("options", "mebibytes"),
    [
        (["--tensors", "model.layers.*.q_proj"], 2),
        (["--tensors", "model.layers.*.q_proj", "--tensors", "*.bias", "--rank", "3/4"], 0.5),
        (["--rank", "0/2"], 2),
    ],
)
def test_some_tensors_or_a_ranks_share_are_warmed(
    server: EmbeddedServer,
    weights: Layout,
    mounter: Mounter,
    tmp_path: Path,
    options: list[str],
    mebibytes: float,
) -> None:
    code, report = warm(server, tmp_path, *options, f"{server.url}/{REPO}/w")
    assert (code, report["files"], report["failures"]) == (0, 2, [])
    wanted, fetched = report["bytes"], report["fetched_bytes"]
    assert isinstance(wanted, int)
    assert isinstance(fetched, int)
    assert mebibytes * MiB <= wanted < mebibytes * MiB + 4096  # and the header
    assert wanted <= fetched <= wanted + 512 * 1024  # whole blocks
    by_file = report["by_file"]
    assert isinstance(by_file, list)
    assert [Path(file["path"]).name for file in by_file] == ["model.safetensors", "config.json"]
    assert sum(file["bytes"] for file in by_file) == wanted
    assert sum(file["fetched_bytes"] for file in by_file) == fetched
    code, report = warm(server, tmp_path, *options, f"{server.url}/{REPO}/w")
    assert (code, report["fetched_bytes"]) == (0, 0)


def test_what_selects_nothing_is_said_in_one_line(
    server: EmbeddedServer, weights: Layout, tmp_path: Path
) -> None:
    place = f"{server.url}/{REPO}/w"
    done = run_jfs(
        *("warm", "--tensors", "typo", "--cache-dir", str(tmp_path / "cache"), place),
        JF_ACCESS_TOKEN=server.token,
    )
    assert done.returncode == 1
    assert done.stderr == f"jfs: {REPO}/w: no tensor is called 'typo'\n"
    assert f"{REPO}/w/model.safetensors: " in done.stdout
    assert done.stdout.splitlines()[0].endswith(" fetched")


def test_what_is_no_file_of_tensors_fails_alone(server: EmbeddedServer, tmp_path: Path) -> None:
    server.deploy(REPO, "w/broken.safetensors", b"\xff" * 100)
    server.deploy(REPO, "w/short.gguf", b"GGU")
    server.deploy(REPO, "w/z.json", b"{}")
    code, report = warm(server, tmp_path, "--rank", "0/2", f"{server.url}/{REPO}/w")
    assert code == 1
    failures = report["failures"]
    assert isinstance(failures, list)
    assert [Path(failure["path"]).name for failure in failures] == [
        "broken.safetensors",
        "short.gguf",
    ]
    assert all("\n" not in failure["error"] for failure in failures)


@pytest.mark.parametrize("rank", ["4/4", "1", "-1/2", "0/0", "1/99999999", "a/b"])
def test_a_rank_that_is_none_is_refused(rank: str) -> None:
    done = run_jfs("warm", f"--rank={rank}", "nowhere/at-all")
    assert done.returncode == 2
    assert "is no rank: R/N" in done.stderr


def test_many_connections_fit_into_little_memory(server: EmbeddedServer, tmp_path: Path) -> None:
    content = os.urandom(MiB) * 96
    server.deploy(REPO, "large.bin", content)
    with limited(f"jfs-{tmp_path.name}", 96 * MiB) as group:
        done = run_jfs(
            *("warm", "--connections", "64", "--cache-dir", str(tmp_path / "cache")),
            f"{server.url}/{REPO}/large.bin",
            under=() if group is None else group.under,
            JF_ACCESS_TOKEN=server.token,
        )
        assert done.returncode == 0, done.stderr
        assert group is None or group.killed == 0
    assert cached(tmp_path)[0]["complete"]
