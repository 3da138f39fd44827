"""Examples per second that the data stream delivers from local tars of 128 px WebP images, on one core.

Prints CPU seconds rather than wall time, so that other work on the machine does not count. With DIPTYCH_TEST_DATA set
the images are the emoji of that folder, else drawings made here. Peer: a plain ``webdataset`` pipeline with the same
decoding, which reads in order and can neither resume nor divide an epoch exactly.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.images import decode_image
from diptych.data.pack import write_shards
from diptych.data.sources.blob_npz import PackRecord, emoji_records
from diptych.data.sources.webdataset import WebDatasetSource
from diptych.data.stream import MixtureStream

NUM_EXAMPLES = 4000
BATCH_SIZE = 32


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tars = Path(folder) / "tars"
        tars.mkdir()
        num_records = sum(count for _, count in write_shards(records(), tars, max_records=1000))
        config = WebDatasetSource(urls=(str(tars),), cache_dir=folder)

        started = time.process_time()
        reader = config.build()
        print(f"scan of {num_records} records        {num_records / (time.process_time() - started):>9.0f} records/s")
        started = time.process_time()
        config.build()
        print(f"opening with a cached index   {1000 * (time.process_time() - started):>9.1f} ms")

        def draws() -> Iterator[Any]:
            stream = MixtureStream({"a": reader}, {"a": 1.0}, seed=0, batch_size=BATCH_SIZE)
            return (draw for batch in stream.draws() for draw in batch)

        def read() -> Iterator[Any]:
            stream = MixtureStream({"a": reader}, {"a": 1.0}, seed=0, batch_size=BATCH_SIZE)
            return (example for batch in stream for example in batch)

        report("order alone (no reading)", draws, 50_000)
        report("raw records, no decoding", lambda: map(reader.fields, cycle(num_records)), NUM_EXAMPLES)
        ours = report("stream of decoded examples", read, NUM_EXAMPLES)
        peer = report("peer: webdataset, in order", lambda: plain_webdataset(tars), NUM_EXAMPLES)
        print(f"ratio to the peer             {ours / peer:>9.2f}")


def report(name: str, make: Callable[[], Iterator[Any]], count: int) -> float:
    started = time.process_time()
    found = sum(1 for _ in islice(make(), count))
    rate = found / (time.process_time() - started)
    print(f"{name:<29} {rate:>9.0f} examples/s")
    return rate


def cycle(size: int) -> Iterator[int]:
    number = 0
    while True:
        yield number * 7919 % size
        number += 1


def plain_webdataset(folder: Path) -> Iterator[Any]:
    import webdataset

    urls = sorted(map(str, folder.glob("*.tar")))
    pipeline = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).repeat()
    for sample in pipeline:
        yield decode_image(sample["webp"]), sample["txt"].decode()


def records() -> Iterator[PackRecord]:
    data = os.environ.get("DIPTYCH_TEST_DATA")
    if data:
        yield from emoji_records(Path(data) / "images" / "emoji", "train")
        return
    rng = np.random.default_rng(0)
    for number in range(NUM_EXAMPLES):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 4), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((128, 128), Image.Resampling.BICUBIC).save(buffer, "WEBP", quality=90)
        yield PackRecord(f"{number:06d}", {"webp": buffer.getvalue(), "txt": f"drawing {number}".encode()})


if __name__ == "__main__":
    main()
