"""Memory limits of the kernel, where there is no kernel that keeps them: nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.launcher.cages import open_cages


def lay_out(folder: Path, controllers: str = "cpu memory") -> Path:
    """A /proc of a process whose cgroup is `folder/cgroup`, where nothing answers as a kernel would."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text("0::/\n")
    mount = f"30 23 0:26 / {folder / 'cgroup'} rw - cgroup2 cgroup2 rw\n"
    (folder / "proc" / "self" / "mountinfo").write_text(mount)
    (folder / "cgroup").mkdir()
    (folder / "cgroup" / "cgroup.controllers").write_text(controllers)
    (folder / "cgroup" / "cgroup.subtree_control").write_text("")
    return folder / "proc"


def test_a_cgroup_that_cannot_be_used_is_left_as_it_was(tmp_path: Path) -> None:
    proc = lay_out(tmp_path)
    assert open_cages(proc) is None
    assert sorted(each.name for each in (tmp_path / "cgroup").iterdir()) == [
        "cgroup.controllers",
        "cgroup.subtree_control",
    ]
    assert (tmp_path / "cgroup" / "cgroup.subtree_control").read_text() == ""


@pytest.mark.parametrize("controllers", ["", "cpu", "memoryless"])
def test_a_cgroup_without_the_memory_controller_is_not_touched(tmp_path: Path, controllers: str) -> None:
    proc = lay_out(tmp_path, controllers)
    (tmp_path / "cgroup" / "toolkit-9-entry").mkdir()
    assert open_cages(proc) is None
    assert (tmp_path / "cgroup" / "toolkit-9-entry").exists()


def test_what_a_killed_launcher_left_is_swept_away(tmp_path: Path) -> None:
    proc = lay_out(tmp_path)
    (proc / "8").mkdir()
    for name in ("toolkit-8-entry", "toolkit-9-entry", "toolkit-x", "other"):
        (tmp_path / "cgroup" / name).mkdir()
    assert open_cages(proc) is None
    left = {each.name for each in (tmp_path / "cgroup").iterdir() if each.is_dir()}
    assert left == {"toolkit-8-entry", "toolkit-x", "other"}
