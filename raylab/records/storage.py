"""`Storage`: a folder on a pyarrow file system, of this machine or far away."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, SubTreeFileSystem

from raylab.errors import ConfigError, DataError, RaylabError

__all__ = ["Storage", "vanished"]

_SCHEMES = {"s3": "s3", "gcs": "gs", "abfs": "abfs", "hdfs": "hdfs"}
"""Of addresses, by pyarrow's name of the file system."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder, which need not exist yet; made with `Storage.at`. It can be pickled.

    A file is written aside, under a hidden name of its own in the same folder, and moved over its
    target when it is whole: no reader ever sees half a file, whenever the writer ends. On a local
    disk the bytes are on the disk before the move, and the name is when `write` returns, so that
    what is reported as written outlives a power cut. An object store moves by a copy and a
    deletion, so there a file may have 5 GB at most (of S3's copy in one piece).

    >>> import tempfile
    >>> folder = Storage.at(tempfile.mkdtemp()).child("runs")
    >>> folder.write("note.txt", b"seen whole or not at all")
    >>> folder.names(), folder.read("note.txt")[:10]
    (['note.txt'], b'seen whole')

    Args:
        filesystem: where the folder is.
        path: of the folder inside the file system; without a slash at its end.
        root: a folder at or above it that is never made again by a write; "": all are.
    """

    filesystem: FileSystem
    path: str
    root: str = field(default="", compare=False)

    @classmethod
    def at(cls, where: str | os.PathLike[str], filesystem: FileSystem | None = None) -> Storage:
        """Return the folder.

        Args:
            where: a local path, which is made absolute, with ~ for the home; or a URI such as
                s3://bucket/path; or, with a file system, a path inside that.
            filesystem: a pyarrow file system.

        Raises:
            ConfigError: there is no such kind of storage, or what it asks for cannot be reached.
        """
        text = os.fspath(where)
        if filesystem is None and "://" in text:
            filesystem, text = _from_uri(text)
        filesystem = LocalFileSystem() if filesystem is None else filesystem
        if not isinstance(filesystem, FileSystem):
            raise ConfigError(
                f"a storage's file system must be one of pyarrow.fs, but got "
                f"{type(filesystem).__name__}: wrap one of fsspec in "
                "pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(...))"
            )
        if "\0" in text or "://" in text:
            raise ConfigError(
                f"a storage's path must be one inside the file system given with it, but got "
                f"{text!r}: leave out what stands before the path, or the file system"
            )
        base, path = _base(filesystem, text)
        if isinstance(base, LocalFileSystem):
            return cls(base, str(Path(path).expanduser().absolute()))
        return cls(filesystem, text.rstrip("/"))

    @property
    def local(self) -> Path | None:
        """The folder on this machine's disks, None if it is not there."""
        return Path(self.path) if isinstance(self.filesystem, LocalFileSystem) else None

    @property
    def uri(self) -> str:
        """The address of a folder elsewhere, without credentials and options; else a path."""
        base, path = _base(self.filesystem, self.path)
        scheme = _SCHEMES.get(base.type_name)
        return f"{scheme}://{path}" if scheme else path

    def __str__(self) -> str:
        return self.uri

    def child(self, *names: str) -> Storage:
        """Return a folder below this one."""
        path = self.path
        for name in names:
            path = _joined(path, name)
        return Storage(self.filesystem, path, self.root)

    def rooted(self) -> Storage:
        """Return the same folder, which writes below it do not make again once it has gone."""
        return Storage(self.filesystem, self.path, self.path)

    def make(self) -> list[str]:
        """Make the folder, and those that it is in, if they are missing.

        Returns:
            The paths of those that were missing, the innermost first; elsewhere than on a local
            disk the folder's own at most.

        Raises:
            ConfigError: it cannot be made.
        """
        with self._told("make the folder", self.uri, ConfigError):
            return self._make()

    def remove_empty(self, paths: Sequence[str]) -> None:
        """Remove folders as far as they are empty.

        Args:
            paths: of `make`.
        """
        with contextlib.suppress(OSError):
            for path in paths:
                if self.local is not None:
                    Path(path).rmdir()
                elif not self.filesystem.get_file_info(FileSelector(path, allow_not_found=True)):
                    self.filesystem.delete_dir(path)

    def write(
        self, name: str, content: bytes | Callable[[BinaryIO], object], *, hidden: bool = False
    ) -> None:
        """Write a file, whole or not at all; a missing folder is made, unless `root` has gone.

        Args:
            name: of the file, in place of one that may be there.
            content: its bytes, or a function that writes them to a binary file, front to back.
            hidden: the name begins with a dot.

        Raises:
            DataError: it cannot be written.
        """
        target = _joined(self.path, name, hidden=hidden)
        aside = _joined(self.path, f".{name[:100]}.{uuid.uuid4().hex}", hidden=True)
        with self._told("write", f"{self.uri}/{name}"):
            try:
                file = self._create(aside)
            except FileNotFoundError:
                self._make()
                file = self._create(aside)
            try:
                with file:
                    _fill(file, content)
                    if self.local is not None:
                        file.flush()
                        os.fsync(file.fileno())
                self.filesystem.move(aside, target)
                if self.local is not None:
                    _sync(self.local)
            except BaseException:
                # An object store keeps what was sent when its stream is closed, in order or not.
                with contextlib.suppress(OSError):
                    self.filesystem.delete_file(aside)
                raise

    @contextlib.contextmanager
    def open(self, name: str, *, hidden: bool = False) -> Iterator[BinaryIO]:
        """Open a file to read: a local one with seek, another from its beginning to its end.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        path = _joined(self.path, name, hidden=hidden)
        with self._told("read", f"{self.uri}/{name}"):
            if self.local is not None:
                with Path(path).open("rb") as file:
                    yield file
            else:
                with self.filesystem.open_input_stream(path, compression=None) as stream:
                    yield stream

    def read(self, name: str, *, hidden: bool = False) -> bytes:
        """Return a file's content.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        with self.open(name, hidden=hidden) as file:
            return file.read()

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None if there is no such file."""
        info = self._info(name)
        return int(info.size) if info.type == FileType.File else None

    def exists(self, name: str) -> bool:
        """Return whether there is a file or a folder of this name."""
        return bool(self._info(name).type != FileType.NotFound)

    def names(self) -> list[str]:
        """Return the sorted names of files and folders, without the hidden ones."""
        return sorted(info.base_name for info in self._entries())

    def hidden(self, prefix: str) -> dict[str, float | None]:
        """Return when the hidden files whose names begin so were written, by the storage's clock.

        Args:
            prefix: of the names, with its dot.
        """
        return {
            info.base_name: None if info.mtime is None else info.mtime.timestamp()
            for info in self._listed()
            if info.base_name.startswith(prefix)
        }

    def renew(self, name: str) -> bool:
        """Make a hidden file look as if it had just been written; return whether it is there.

        Raises:
            DataError: it cannot be renewed.
        """
        path = _joined(self.path, name, hidden=True)
        with self._told("write", f"{self.uri}/{name}"):
            if self.local is not None:
                try:
                    os.utime(path)
                except FileNotFoundError:
                    return False
                return True
            if self.filesystem.get_file_info(path).type == FileType.NotFound:
                return False
            with self.filesystem.open_input_stream(path, compression=None) as stream:
                content = stream.read()
            with self._create(path) as file:
                file.write(content)
            return True

    def folders(self) -> list[str]:
        """Return the sorted names of folders, without the hidden ones."""
        return sorted(i.base_name for i in self._entries() if i.type == FileType.Directory)

    def delete(self, name: str, *, hidden: bool = False) -> None:
        """Delete a file, or a folder with all that is in it; a missing one is no error."""
        path = _joined(self.path, name, hidden=hidden)
        kind = self._info(name, hidden=hidden).type
        with self._told("delete", f"{self.uri}/{name}"), contextlib.suppress(FileNotFoundError):
            if kind == FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind != FileType.NotFound:
                self.filesystem.delete_file(path)

    def _make(self) -> list[str]:
        if self.local is None:
            missing = self.filesystem.get_file_info(self.path).type == FileType.NotFound
            self.filesystem.create_dir(self.path, recursive=True)
            return [self.path] if missing else []
        if self.root and not Path(self.root).is_dir():
            raise DataError(vanished(self.root))
        folders = (self.local, *self.local.parents)
        new = list(itertools.takewhile(lambda folder: not folder.exists(), folders))
        self.filesystem.create_dir(self.path, recursive=True)
        for folder in new:
            _sync(folder.parent)
        return [str(folder) for folder in new]

    def _create(self, path: str) -> BinaryIO:
        if self.local is not None:
            return Path(path).open("xb")
        stream: BinaryIO = self.filesystem.open_output_stream(path, compression=None)
        return stream

    def _info(self, name: str, *, hidden: bool = False) -> Any:
        with self._told("look at", f"{self.uri}/{name}"):
            return self.filesystem.get_file_info(_joined(self.path, name, hidden=hidden))

    def _listed(self) -> list[Any]:
        with self._told("list the folder", self.uri):
            selector = FileSelector(self.path, allow_not_found=True)
            return list(self.filesystem.get_file_info(selector))

    def _entries(self) -> list[Any]:
        return [info for info in self._listed() if not info.base_name.startswith(".")]

    @contextlib.contextmanager
    def _told(self, what: str, which: str, kind: type[RaylabError] = DataError) -> Iterator[None]:
        """Turn the operating system's and the store's errors into raylab's."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise kind(f"cannot {what} {which}: {reason}; {self._way_out(error)}") from error

    def _way_out(self, error: OSError) -> str:
        if isinstance(error, FileNotFoundError):
            return "check the path"
        if self.local is None:
            return "check the address, the credentials and the network"
        return "choose a folder that you may write to, on a disk with space"


def vanished(folder: str) -> str:
    """Return the message of a run whose folder is no longer there."""
    return (
        f"a run's folder must stay where it is until the run has ended, but {folder} has been "
        f"moved or deleted: move it back, and raylab resume {folder} goes on from its last "
        "checkpoint, or begin a new run"
    )


def _from_uri(uri: str) -> tuple[FileSystem, str]:
    scheme = uri.partition("://")[0]
    try:
        filesystem, path = FileSystem.from_uri(uri)
    except (pa.ArrowException, ValueError, OSError) as error:
        # A password may stand in the address, and pyarrow's errors repeat it.
        reason = re.sub(r"//[^/@\s]*@", "//", str(error).replace(uri, f"{scheme}://..."))
        raise ConfigError(
            f"storage must be a local folder or an address that pyarrow can open, such as "
            f"s3://bucket/path, but got one of {scheme}:// with: {reason}"
        ) from None
    return filesystem, str(path)


def _base(filesystem: FileSystem, path: str) -> tuple[FileSystem, str]:
    """Return the file system that sub-trees are of, and the path inside that."""
    while isinstance(filesystem, SubTreeFileSystem):
        path = f"{filesystem.base_path.rstrip('/')}/{path.lstrip('/')}".rstrip("/")
        filesystem = filesystem.base_fs
    return filesystem, path


def _joined(path: str, name: str, *, hidden: bool = False) -> str:
    if not name or "/" in name or "\0" in name or (name.startswith(".") and not hidden):
        raise ConfigError(
            f"a name must be one plain file or folder name that does not begin with a dot, "
            f"but got {name!r}"
        )
    return f"{path.rstrip('/')}/{name}" if path else name


def _sync(folder: Path) -> None:
    """Put the names in a local folder on the disk, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems keep names on the disk by themselves and refuse.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _fill(file: BinaryIO, content: bytes | Callable[[BinaryIO], object]) -> None:
    if not callable(content):
        file.write(content)
        return
    try:
        content(file)
    except RuntimeError as error:
        # torch.save closes its archive after an error too, and covers the error with another.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
