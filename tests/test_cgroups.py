"""What cgroups allow, read from folders laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

from toolkit.launcher.cgroups import Allowance, read_allowance


def lay_out(folder: Path, cgroup: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A /proc of one process; `MNT` stands for the folder where cgroups are mounted."""
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(cgroup)
    shown = str(folder / "sys fs").replace(" ", "\\040")
    (proc / "self" / "mountinfo").write_text("".join(f"{mount}\n" for mount in mounts).replace("MNT", shown))
    for name, text in files.items():
        file = folder / "sys fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return proc


V2 = "30 23 0:26 / MNT rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"


def test_the_least_of_all_levels_counts(tmp_path: Path) -> None:
    files = {
        "a/cpu.max": "400000 100000\n",
        "a/memory.max": "8589934592\n",
        "a/b/cpu.max": "max 100000\n",
        "a/b/memory.max": "max\n",
    }
    assert read_allowance(lay_out(tmp_path, "0::/a/b\n", [V2], files)) == Allowance(4.0, 8 << 30)


def test_part_of_a_core(tmp_path: Path) -> None:
    proc = lay_out(tmp_path, "0::/\n", [V2], {"cpu.max": "150000 100000\n"})
    assert read_allowance(proc) == Allowance(cpus=1.5)


def test_a_container_that_sees_only_its_own_part(tmp_path: Path) -> None:
    """Without a namespace of its own the path is the host's, and the mount shows from there on."""
    mount = "30 23 0:26 /docker/abc MNT ro - cgroup2 cgroup rw"
    proc = lay_out(tmp_path, "0::/docker/abc\n", [mount], {"memory.max": "1024\n"})
    assert read_allowance(proc) == Allowance(memory=1024)


def test_version_1(tmp_path: Path) -> None:
    mounts = [
        "31 23 0:27 / MNT/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
        "32 23 0:28 / MNT/memory rw - cgroup cgroup rw,memory",
    ]
    files = {
        "cpu,cpuacct/job/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/job/memory.limit_in_bytes": "2147483648\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    proc = lay_out(tmp_path, "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n", mounts, files)
    assert read_allowance(proc) == Allowance(2.0, 2 << 30)


def test_what_is_not_there_limits_nothing(tmp_path: Path) -> None:
    assert read_allowance(tmp_path) == Allowance()


def test_this_machine_can_be_read() -> None:
    allowance = read_allowance()
    assert allowance.cpus is None or allowance.cpus > 0
    assert allowance.memory is None or allowance.memory > 0
