"""Names of shards and how they come to this machine.

Local tars are read in place. Everything else (``pipe:`` commands, fsspec URLs, compressed tars) is read once from
beginning to end into a cache folder of limited size, which all processes of a machine share, and then used like a local
tar.
"""

import contextlib
import fcntl
import glob
import gzip
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{},]*(?:,[^{},]*)+)\}")
_COMPRESSED = (".gz", ".tgz")
_GZIP_MAGIC = b"\x1f\x8b"
_NUM_ATTEMPTS = 3


class ShardUnreachable(OSError):
    """A shard could not be read to its end."""


def expand_shards(urls: Sequence[str]) -> list[str]:
    """All shards that the patterns name, in a fixed order.

    A pattern is a path, a glob, a folder (its ``*.tar``), a ``pipe:`` command or a URL; ``{000..012}`` and ``{a,b}``
    are expanded first in all of them.

    Raises:
        FileNotFoundError: a local pattern matches nothing.
    """
    return [shard for url in urls for pattern in expand_braces(url) for shard in _expand_local(pattern)]


def expand_braces(text: str) -> list[str]:
    """``a{08..10}`` -> ``a08 a09 a10`` and ``{x,y}z`` -> ``xz yz``, as a shell does."""
    match = _BRACES.search(text)
    if not match:
        return [text]
    inside = match.group(1)
    if ".." in inside and "," not in inside:
        first, last = inside.split("..")
        step = 1 if int(first) <= int(last) else -1
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        options = [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]
    else:
        options = inside.split(",")
    head, tail = text[: match.start()], text[match.end() :]
    return [head + option + rest for option in options for rest in expand_braces(tail)]


def is_local(shard: str) -> bool:
    """Whether the shard is an uncompressed file on this machine."""
    return not is_url(shard) and not shard.lower().endswith(_COMPRESSED)


def is_url(shard: str) -> bool:
    return shard.startswith("pipe:") or "://" in shard


def open_copy(shard: str, cache_dir: Path, cache_bytes: int) -> int:
    """A file descriptor of the shard as an uncompressed tar on this machine; fetched if it is not in the cache.

    Args:
        cache_bytes: when the copies take more, the ones that were not used for longest are deleted.

    Raises:
        ShardUnreachable: after three attempts.
    """
    folder = cache_dir / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:32]}.tar"
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            _fetch(shard, path)
            _evict(folder, cache_bytes, keep=path)
        os.utime(path)
        return os.open(path, os.O_RDONLY)


def _expand_local(pattern: str) -> list[str]:
    if is_url(pattern):
        return [pattern]
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(str(file) for file in path.glob("*.tar"))
    elif path.exists():
        found = [str(path)]
    else:
        found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise FileNotFoundError(f"no shard matches {pattern!r}: give a tar file, a folder of tars, a glob or a URL.")
    return found


def _fetch(shard: str, path: Path) -> None:
    for attempt in range(1, _NUM_ATTEMPTS + 1):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            started = time.monotonic()
            with os.fdopen(descriptor, "wb") as target, _open_shard(shard) as stream:
                shutil.copyfileobj(stream, target, 1 << 20)
            _decompress(Path(temporary))
            os.replace(temporary, path)
            logger.info("fetched %s in %.1f s", shard, time.monotonic() - started)
            return
        except (OSError, EOFError) as error:
            Path(temporary).unlink(missing_ok=True)
            if attempt == _NUM_ATTEMPTS or isinstance(error, FileNotFoundError):
                raise ShardUnreachable(
                    f"shard {shard} could not be read ({attempt} of {_NUM_ATTEMPTS} attempts): {error}. "
                    "Check the address and the connection, then resume the run."
                ) from error
            logger.warning("attempt %d to read shard %s failed: %s", attempt, shard, error)
            time.sleep(2.0 ** (attempt - 1))


@contextlib.contextmanager
def _open_shard(shard: str) -> Iterator[IO[Any]]:
    if not is_url(shard):
        with open(shard, "rb") as file:
            yield file
    elif shard.startswith("pipe:"):
        with _import("webdataset", shard).gopen(shard) as stream:
            yield stream
    else:
        with _import("fsspec", shard).open(shard, "rb") as stream:
            yield stream


def _import(module: str, shard: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise ImportError(f"shard {shard} needs the package {module}: pip install 'diptych[data]'.") from error


def _decompress(path: Path) -> None:
    """Replaces a gzip file by what is in it."""
    with path.open("rb") as file:
        if file.read(2) != _GZIP_MAGIC:
            return
    unpacked = path.with_suffix(".unpacked")
    try:
        with gzip.open(path, "rb") as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(unpacked, path)
    finally:
        unpacked.unlink(missing_ok=True)


def _evict(folder: Path, cache_bytes: int, keep: Path) -> None:
    files = sorted((file.stat().st_mtime_ns, file) for file in folder.glob("*.tar"))
    total = sum(file.stat().st_size for _, file in files)
    for _, file in files:
        if total <= cache_bytes:
            return
        if file == keep:
            continue
        size = file.stat().st_size
        # Under its lock, so that it does not vanish between another process's fetching and opening it; whoever has it
        # open goes on reading it.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(file.with_suffix(".lock"), wait=False):
            file.unlink()
            total -= size


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Keeps other processes of this machine from fetching the same shard at the same time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
