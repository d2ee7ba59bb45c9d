"""Owner, mode and kind of files and directories: the check before anything is trusted, emptied or deleted.

A path is refused if someone else could have chosen its content:

- It is a symbolic link. A directory that the user chose, such as a cache on another disk, may be one (`follow`).
- Its owner is neither this process's user nor root. For root itself, every other user is refused. On file systems that
  assign an owner to whatever this process creates (NFS with root_squash, some FUSE and SMB mounts), that owner counts as
  this user. Root in a container therefore refuses directories of uid 1000 that are mounted into it, although it could read
  and delete everything in them: run the container as their owner, or chown them.
- Every user may write to it, unless it is a directory with the sticky bit, such as /tmp.
- A group may write to it. Groups that add nobody are accepted: root's, the user's private one (named like the user, without
  other members; the default of many distributions), and those without a name, as in containers. These are sudo's and ssh's
  rules, apart from the last.

Data of others, without code, may be read where the user named the directory (`reading_problem`). It is never emptied.

Permissions count only if others can reach the path through its parent: what a private directory contains is private.
Directories further up are not checked, so that runs below a shared project directory work: there, a run directory is private
itself. Whoever may write to `outputs/` can still rename a run directory, but cannot change what is in it.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from arctic_hydra.errors import UnsafePathError


def folder_problem(path: Path, *, follow: bool = False) -> str | None:
    """Return why the directory `path` must be neither trusted nor emptied, or None; None too if it does not exist."""
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"cannot be examined ({error.strerror})"
    if stat.S_ISLNK(info.st_mode):
        if not follow:
            return f"is a symbolic link to {os.readlink(path)}"
        if not _is_ours(info, path.parent):
            return f"is a symbolic link that {_name(info.st_uid)} created"
        try:
            path = path.resolve(strict=True)
            info = path.stat()
        except (OSError, RuntimeError):
            return f"is a symbolic link to {os.readlink(path)}, which cannot be opened"
    if not stat.S_ISDIR(info.st_mode):
        return "is not a directory"
    if not _is_ours(info, path):
        return f"belongs to {_name(info.st_uid)}"
    return _writable(info, path.parent.stat())


def reading_problem(top: Path, below: Iterable[Path]) -> str | None:
    """Return why data in a directory that the user named must not be read, or None; its owner may be anyone.

    `below` are the directories and files in it. They must belong to its owner, root or this process's user, and nobody else
    may write to any of them; unlike in `folder_problem`, a sticky bit does not help, because it lets others add files.
    """
    try:
        found = [(top, top.stat()), *((path, path.lstat()) for path in below)]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    owners = (found[0][1].st_uid, os.geteuid(), 0)
    for path, info in found:
        if stat.S_ISLNK(info.st_mode):
            return f"contains a symbolic link: {path}"
        if info.st_uid not in owners:
            return f"contains {path}, which belongs to {_name(info.st_uid)}"
        if problem := _writable_mode(info):
            return problem if path == top else f"contains {path}, which {problem}"
    return None


def file_problem(info: os.stat_result, folder: os.stat_result) -> str | None:
    """Return why the content of an open file must not be trusted, or None; the owner of its trusted folder is accepted."""
    if not stat.S_ISREG(info.st_mode):
        return f"is {kind_of(info)}, not a file"
    if info.st_uid not in (os.geteuid(), 0, folder.st_uid):
        return f"belongs to {_name(info.st_uid)}"
    return _writable(info, folder)


def check_folder(path: Path, *, follow: bool = False) -> None:
    """Raise UnsafePathError if the directory exists and `folder_problem` finds a reason."""
    if problem := folder_problem(path, follow=follow):
        raise UnsafePathError(f"{path} {problem}; {remedy(problem)}")


def remedy(problem: str) -> str:
    """Return what to do about a reason of `folder_problem` or `file_problem`."""
    if "symbolic link" in problem:
        return "use a directory itself, or a link further up"
    if "may write" in problem:
        return "check its content, then run chmod go-w on it"
    if os.geteuid() == 0:
        return "use a directory of your own, run as its owner, or check its content and run chown on it"
    return "use a directory of your own"


def unwritable(field: str, path: str | None) -> Iterator[str]:
    """Yield a problem of the config field `field`, a folder that may still have to be created, if nothing can be written there."""
    if path and (problem := _writing_problem(Path(path))):
        yield f"{field}: {problem}; pass a folder that you can write to"


def _writing_problem(folder: Path) -> str | None:
    """Return why nothing can be written into a directory, or None if it seems possible."""
    try:
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not place.is_dir():
            return f"{place} is {kind_of(place.lstat())}, expected a directory"
        return None if os.access(place, os.W_OK | os.X_OK) else f"cannot write to {place}"
    except OSError as error:
        return f"{folder} cannot be examined ({error.strerror})"


def misplaced(folder: Path, files: Iterable[str] = (), folders: Iterable[str] = ()) -> str | None:
    """Return a sentence about a name in `folder` that is not the file or directory that it should be, or None.

    Links are neither, because they could lead out of `folder`.
    """
    for names, is_kind, expected in ((files, stat.S_ISREG, "file"), (folders, stat.S_ISDIR, "directory")):
        for path in (folder / name for name in names):
            try:
                info = path.lstat()
            except FileNotFoundError:
                continue
            if not is_kind(info.st_mode):
                return f"{path}: is {kind_of(info)}, expected a {expected}; move it away and try again"
    return None


def empty_folder(path: Path, keep: Iterable[str] = ()) -> None:
    """Delete everything in a directory except the names in `keep`; links are deleted, not what they point to.

    Raises UnsafePathError for a directory that must not be emptied. It is opened before it is checked, so it cannot be
    exchanged in between.
    """
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        check_folder(path)
        raise
    try:
        check_folder(path)
        if not os.path.samestat(os.fstat(folder), path.lstat()):
            raise UnsafePathError(f"{path} was replaced while it was being emptied; nothing was deleted")
        kept = set(keep)
        for name in os.listdir(folder):
            if name in kept:
                continue
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def remove_tree(path: Path) -> None:
    """Delete a directory with its content if it exists. Raises UnsafePathError for one that must not be emptied."""
    check_folder(path)
    remove_own_tree(path)


def remove_own_tree(path: Path) -> None:
    """Delete a directory that this package created under a name of its own, or a link or file in its place."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def kind_of(info: os.stat_result) -> str:
    """Return the kind of a file: `a directory`, `a symbolic link`, `a pipe`, ..."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(info.st_mode), "a device")


def _writable(info: os.stat_result, parent: os.stat_result) -> str | None:
    """Return who else may write to a path and can reach it, or None."""
    mode = info.st_mode
    if not _opens_to_others(parent) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return None
    return _writable_mode(info)


def _writable_mode(info: os.stat_result) -> str | None:
    mode = info.st_mode
    if mode & stat.S_IWOTH:
        return f"is not private: every user may write to it (mode {stat.S_IMODE(mode):04o})"
    if mode & stat.S_IWGRP and not _adds_nobody(info.st_gid):
        return f"is not private: the group {_group_name(info.st_gid)} may write to it (mode {stat.S_IMODE(mode):04o})"
    return None


def _opens_to_others(parent: os.stat_result) -> bool:
    if parent.st_uid not in (os.geteuid(), 0):
        return True
    mode = parent.st_mode
    return bool(mode & stat.S_IXOTH) or bool(mode & stat.S_IXGRP and not _adds_nobody(parent.st_gid))


def _is_ours(info: os.stat_result, folder: Path) -> bool:
    if info.st_uid in (os.geteuid(), 0):
        return True
    try:  # what this process creates there belongs to the same owner if the file system maps owners
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_uid == info.st_uid
    except OSError:
        return False


def _adds_nobody(gid: int) -> bool:
    """Whether a group has no members but root and this process's user."""
    if gid == 0:
        return True
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return True
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}


def _name(uid: int) -> str:
    try:
        return f"another user ({pwd.getpwuid(uid).pw_name}, uid {uid})"
    except KeyError:
        return f"another user (uid {uid})"


def _group_name(gid: int) -> str:
    return grp.getgrgid(gid).gr_name if gid else "root"
