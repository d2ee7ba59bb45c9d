"""Which directories are trusted and may be emptied. Owners and modes need root, which may set any."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from pathlib import Path

import pytest

from arctic_hydra.errors import UnsafePathError
from arctic_hydra.files import ownership
from arctic_hydra.files.ownership import empty_folder, folder_problem, misplaced, remove_own_tree, remove_tree

STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a file, whose parent every user may enter."""
    tmp_path.chmod(0o755)
    found = tmp_path / "folder"
    found.mkdir(mode=0o700)
    (found / "kept").touch()
    return found


def link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def dangling(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def mode(bits: int, gid: int = 0):
    def change(folder: Path) -> None:
        os.chown(folder, -1, gid)
        folder.chmod(bits)

    change.__name__ = f"{bits:o}-{gid}"
    return change


def given_away(folder: Path) -> None:
    os.chown(folder, STRANGER, -1)


NAMED = grp.getgrnam("games").gr_gid if "games" in {group.gr_name for group in grp.getgrall()} else 1
REFUSED = [
    (link, "is a symbolic link to elsewhere"),
    (dangling, "is a symbolic link to nowhere"),
    (file, "is not a directory"),
    (given_away, f"belongs to another user (uid {STRANGER})"),
    (mode(0o777), "is not private: every user may write to it (mode 0777)"),
    (mode(0o702), "is not private: every user may write to it (mode 0702)"),
    (mode(0o770, NAMED), f"is not private: the group {grp.getgrgid(NAMED).gr_name} may write to it (mode 0770)"),
    (mode(0o2775, NAMED), f"is not private: the group {grp.getgrgid(NAMED).gr_name} may write to it (mode 2775)"),
]
ACCEPTED = [mode(0o700), mode(0o755), mode(0o1777), mode(0o770), mode(0o2750, NAMED), mode(0o2770, 54321)]


@as_root
@pytest.mark.parametrize(("change", "problem"), REFUSED, ids=lambda item: getattr(item, "__name__", ""))
def test_a_directory_that_others_could_have_filled_is_neither_trusted_nor_emptied(folder, change, problem):
    change(folder)
    before = sorted(folder.parent.rglob("*"))
    assert folder_problem(folder) == problem
    for act in (empty_folder, remove_tree):
        with pytest.raises(UnsafePathError) as caught:
            act(folder)
        assert str(caught.value).startswith(f"{folder} {problem}; ")
    assert sorted(folder.parent.rglob("*")) == before


@as_root
@pytest.mark.parametrize("change", ACCEPTED, ids=lambda item: item.__name__)
def test_directories_of_the_user_and_of_groups_that_add_nobody_are_accepted(folder, change):
    change(folder)
    assert folder_problem(folder) is None
    (folder / "gone").mkdir()
    (folder / "gone" / "link").symlink_to(folder.parent)
    empty_folder(folder, keep={"kept"})
    assert os.listdir(folder) == ["kept"]
    remove_tree(folder)
    assert not folder.exists() and folder.parent.exists()


@as_root
def test_root_is_told_what_to_do_about_a_directory_of_another_user(folder, monkeypatch):
    """As in a container with a mounted directory of uid 1000."""
    given_away(folder)
    with pytest.raises(
        UnsafePathError, match=r"; use a directory of your own, run as its owner, or .* run chown on it$"
    ):
        empty_folder(folder)
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert ownership.remedy("belongs to another user (uid 5)") == "use a directory of your own"


def test_what_does_not_exist_has_no_problem(tmp_path):
    assert folder_problem(tmp_path / "absent") is None and folder_problem(tmp_path / "a" / "b") is None
    remove_tree(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        empty_folder(tmp_path / "absent")


@as_root
def test_the_content_of_a_private_directory_is_private_whatever_its_modes(folder):
    """As under a umask of 0, which is the default in some containers."""
    inner = folder / "inner"
    inner.mkdir()
    inner.chmod(0o777)
    assert folder_problem(inner) is None
    folder.chmod(0o711)
    assert folder_problem(inner) == "is not private: every user may write to it (mode 0777)"
    folder.chmod(0o700)
    os.chown(folder, STRANGER, -1)
    assert folder_problem(inner) == "is not private: every user may write to it (mode 0777)"


@as_root
def test_a_directory_that_the_user_chose_may_be_a_link_to_one_of_his_own(folder):
    link(folder)
    assert folder_problem(folder, follow=True) is None
    os.chown(folder, STRANGER, -1, follow_symlinks=False)
    assert folder_problem(folder, follow=True) == f"is a symbolic link that another user (uid {STRANGER}) created"
    os.chown(folder, 0, -1, follow_symlinks=False)
    given_away(folder)
    assert folder_problem(folder, follow=True) == f"belongs to another user (uid {STRANGER})"
    folder.unlink()
    folder.symlink_to("folder")
    assert folder_problem(folder, follow=True) == "is a symbolic link to folder, which cannot be opened"


@as_root
def test_another_user_than_root_accepts_what_is_his_own_and_what_is_roots(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert folder_problem(folder) is None
    os.chown(folder, STRANGER, -1)
    assert folder_problem(folder) is None
    os.chown(folder, STRANGER + 1, -1)
    assert folder_problem(folder) == f"belongs to another user (uid {STRANGER + 1})"


@as_root
def test_a_group_of_the_users_name_without_other_members_is_private(folder, monkeypatch):
    mode(0o770, NAMED)(folder)
    user = pwd.getpwuid(0).pw_name
    members: list[str] = []
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((user, "x", gid, members)))
    assert folder_problem(folder) is None
    members.append("somebody")
    assert "the group root may write to it" in str(folder_problem(folder))


@as_root
def test_the_owner_that_a_file_system_gives_to_new_files_counts_as_the_user(folder, monkeypatch):
    """NFS with root_squash: what root creates belongs to nobody."""
    given_away(folder)
    create = ownership.tempfile.TemporaryFile

    def squashed(**where):
        probe = create(**where)
        os.fchown(probe.fileno(), STRANGER, -1)
        return probe

    monkeypatch.setattr(ownership.tempfile, "TemporaryFile", squashed)
    assert folder_problem(folder) is None


def test_a_directory_that_is_exchanged_while_it_is_checked_is_not_emptied(folder, monkeypatch):
    def exchange(path):
        folder.rename(folder.with_name("before"))
        folder.mkdir()

    monkeypatch.setattr(ownership, "check_folder", exchange)
    with pytest.raises(UnsafePathError, match="was replaced while it was being emptied; nothing was deleted"):
        empty_folder(folder)
    assert (folder.with_name("before") / "kept").exists()


def test_a_link_in_place_of_an_own_directory_is_removed_but_not_what_it_points_to(folder):
    link(folder)
    remove_own_tree(folder)
    assert not folder.is_symlink() and (folder.with_name("elsewhere") / "kept").exists()
    file(folder.with_name("elsewhere"))
    remove_own_tree(folder.with_name("elsewhere"))
    assert list(folder.parent.iterdir()) == []


def test_a_name_of_the_wrong_kind_is_named_with_what_it_should_be(folder):
    (folder / "logs").touch()
    (folder / "pipe").mkdir()
    assert misplaced(folder, files=["kept", "absent"], folders=["absent"]) is None
    assert (
        misplaced(folder, folders=["logs"])
        == f"{folder}/logs: is a file, expected a directory; move it away and try again"
    )
    assert str(misplaced(folder, files=["pipe"])).startswith(f"{folder}/pipe: is a directory, expected a file")
    (folder / "pipe").rmdir()
    os.mkfifo(folder / "pipe")
    assert str(misplaced(folder, files=["pipe"])).startswith(f"{folder}/pipe: is a pipe, expected a file")
    (folder / "link").symlink_to(folder)
    assert "is a symbolic link, expected a directory" in str(misplaced(folder, folders=["link"]))
    assert "is a symbolic link, expected a file" in str(misplaced(folder, files=["link"]))
