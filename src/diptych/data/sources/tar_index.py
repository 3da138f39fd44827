"""Where the records of a tar shard lie, so that any record can be read without reading what is before it.

Files of a tar belong to one record when they follow each other and share the name up to the first dot (the WebDataset
convention). A shard is scanned once and the index is kept in a cache folder, checked by the shard's size and time of
change.
"""

import hashlib
import json
import logging
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """One file of a record: its extension (all after the first dot, lower case) and its place in the tar."""

    extension: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarIndex:
    """Records of a shard in compact arrays: about 50 bytes a record."""

    key_bytes: NDArray[np.uint8]
    key_ends: NDArray[np.int64]
    member_ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    extension_ids: NDArray[np.uint16]
    extensions: tuple[str, ...]
    damage: str
    """Why the scan ended before the end mark of the tar; empty for a whole shard."""

    @property
    def num_records(self) -> int:
        """Records found; a damaged shard has one more, which stands for all that could not be found."""
        return len(self.key_ends) + bool(self.damage)

    def record(self, index: int) -> tuple[str, list[Member]]:
        """Key and files of a record.

        Raises:
            IndexError: there is no such record, or it is the one that stands for the damage.
        """
        if not 0 <= index < len(self.key_ends):
            raise IndexError(f"record must be in [0, {len(self.key_ends)}), got {index}.")
        start, stop = (int(self.key_ends[index - 1]) if index else 0), int(self.key_ends[index])
        first, last = (int(self.member_ends[index - 1]) if index else 0), int(self.member_ends[index])
        key = self.key_bytes[start:stop].tobytes().decode("utf-8", "backslashreplace")
        return key, [
            Member(self.extensions[self.extension_ids[row]], int(self.offsets[row]), int(self.sizes[row]))
            for row in range(first, last)
        ]


def scan_tar(file: BinaryIO) -> TarIndex:
    """Reads the headers of an uncompressed tar. A damaged one gives the records before the damage.

    Folders, links and names that begin with a dot or with two underscores are no records.
    """
    keys: list[bytes] = []
    member_ends: list[int] = []
    members: list[tuple[int, int, int]] = []
    extension_ids: dict[str, int] = {}
    damage = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                split = split_name(info.name) if info.isreg() else None
                if split is None:
                    continue
                key = split[0].encode("utf-8", "surrogateescape")
                if not keys or keys[-1] != key:
                    keys.append(key)
                    member_ends.append(len(members))
                extension_id = extension_ids.setdefault(split[1], len(extension_ids))
                members.append((info.offset_data, info.size, extension_id))
                member_ends[-1] = len(members)
            damage = _missing_end(file, tar.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        damage = str(error) or type(error).__name__
    columns = np.array(members, dtype=np.int64).reshape(-1, 3)
    return TarIndex(
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
        member_ends=np.array(member_ends, dtype=np.int64),
        offsets=columns[:, 0].copy(),
        sizes=columns[:, 1].copy(),
        extension_ids=columns[:, 2].astype(np.uint16),
        extensions=tuple(extension_ids),
        damage=damage,
    )


def local_index(path: Path, cache_dir: Path) -> TarIndex:
    """The index of a shard on this machine: from the cache, or by a scan whose result is put there.

    Raises:
        FileNotFoundError: no such shard.
    """
    status = path.stat()
    cached = _index_path(cache_dir, str(path.resolve()))
    stamp = (status.st_size, status.st_mtime_ns)
    index = _load(cached, stamp)
    if index is None:
        with path.open("rb") as file:
            index = scan_tar(file)
        _save(index, cached, stamp)
    return index


def remote_index(url: str, cache_dir: Path) -> TarIndex | None:
    """The index of a remote shard, if it was ever scanned on this machine; a remote shard is taken never to change."""
    return _load(_index_path(cache_dir, url), (0, 0))


def scan_remote(url: str, file: BinaryIO, cache_dir: Path) -> TarIndex:
    """Scans the copy of a remote shard and keeps its index."""
    index = scan_tar(file)
    _save(index, _index_path(cache_dir, url), (0, 0))
    return index


def split_name(name: str) -> tuple[str, str] | None:
    """Key and lower-case extension of a file in a shard, ``None`` for a name that is no part of a record."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or not extension or base.startswith("__"):
        return None
    return folder + slash + stem, extension.lower()


def _missing_end(file: BinaryIO, offset: int) -> str:
    """A tar ends with blocks of zeros; tarfile takes anything it cannot read for the end."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if len(block) == _BLOCK and not any(block):
        return ""
    return f"no readable header at byte {offset}" if block else f"ends at byte {offset} without an end mark"


def _index_path(cache_dir: Path, identity: str) -> Path:
    return cache_dir / "index" / f"{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"


def _load(path: Path, stamp: tuple[int, int]) -> TarIndex | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if tuple(arrays["stamp"].tolist()) != stamp:
                return None
            texts = json.loads(arrays["texts"].tobytes())
            return TarIndex(
                **{name: arrays[name] for name in _ARRAYS},
                extensions=tuple(texts["extensions"]),
                damage=texts["damage"],
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError) as error:
        logger.warning("index %s cannot be read (%s); the shard is scanned again.", path, error)
        return None


_ARRAYS = ("key_bytes", "key_ends", "member_ends", "offsets", "sizes", "extension_ids")


def _save(index: TarIndex, path: Path, stamp: tuple[int, int]) -> None:
    texts = json.dumps({"extensions": list(index.extensions), "damage": index.damage}).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own and a rename: several processes may scan the same shard at the same time.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz.tmp")
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file,
                stamp=np.array(stamp, dtype=np.int64),
                texts=np.frombuffer(texts, dtype=np.uint8),
                **{name: getattr(index, name) for name in _ARRAYS},
            )
        os.replace(temporary, path)
    except OSError as error:
        logger.warning(
            "the index of a shard cannot be kept in %s (%s); it is scanned in every run.", path.parent, error
        )
