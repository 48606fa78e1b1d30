"""Memory limits of cgroup v2 and v1, on trees of files like the kernel's."""

from pathlib import Path

from jfs.cgroup import memory_limit


def tree(tmp_path: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    root, proc = tmp_path / "fs", tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_max", ".max").replace("_in", ".limit_in")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root, proc


def test_no_cgroup_is_no_limit(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path) is None


def test_version_2_takes_the_smallest_above(tmp_path: Path) -> None:
    where = tree(
        tmp_path, "0::/a/b\n", a__b__memory_max="max\n", a__memory_max="1000\n", memory_max="2000\n"
    )
    assert memory_limit(*where) == 1000


def test_a_container_sees_its_own_root_only(tmp_path: Path) -> None:
    assert memory_limit(*tree(tmp_path, "0::/../host/path\n", memory_max="512\n")) == 512


def test_version_1(tmp_path: Path) -> None:
    where = tree(
        tmp_path,
        "5:cpu:/x\n4:memory:/x\n0::/x\n",
        memory__x__memory_in_bytes="4096\n",
        memory__memory_in_bytes=f"{(1 << 63) - 4096}\n",
    )
    assert memory_limit(*where) == 4096
