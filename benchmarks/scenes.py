"""Speed and exactness of the built-in world: drawing, captions, reading back.

Prints figures and asserts nothing. One thread: OMP_NUM_THREADS=1 python benchmarks/scenes.py --num 300
"""

import argparse
import importlib
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from diptych.scenes.draw import draw
from diptych.scenes.parse import exact_match, parse
from diptych.scenes.sample import sample_scene
from diptych.scenes.scene import Scene

CONDITIONS: dict[str, Callable[[Scene, np.random.Generator], np.ndarray]] = {
    "clean 64": lambda scene, rng: draw(scene, 64),
    "clean 256": lambda scene, rng: draw(scene, 256),
    "noise 25/255, 64": lambda scene, rng: add_noise(draw(scene, 64), rng),
    "blur 1 px, 64": lambda scene, rng: add_blur(draw(scene, 64)),
}


def add_noise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(picture + rng.normal(0, 25, picture.shape), 0, 255).round().astype(np.uint8)


def add_blur(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1)))


def rate(work: Callable[[], object], num: int) -> str:
    """Times ``num`` calls by processor time, which other programs on the machine disturb least."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(num):
        work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return f"{num / cpu:8.0f} /s per core ({num / wall:.0f} /s by the clock)"


def drawing(num: int) -> None:
    rng = np.random.default_rng(0)
    for side in (32, 64, 256, 1024):
        count = num if side <= 64 else max(num // 10, 10)
        for _ in range(20):  # the tables of strips are made on first use
            draw(sample_scene(rng), side)
        speed = rate(lambda side=side: draw(sample_scene(rng), side), count)
        print(f"sampled and drawn at {side:4d} px        {speed}")
    try:
        caption = importlib.import_module("diptych.scenes.captions").caption
    except ImportError:
        print("captions: diptych.scenes.captions is not there yet")
        return
    for style in ("short", "mixed"):

        def example(style: str = style) -> tuple[np.ndarray, str]:
            scene = sample_scene(rng)
            return draw(scene, 64), caption(scene, rng, style)

        print(f"drawn at 64 px and captioned ({style:5s}) {rate(example, num)}")


def reading(num: int) -> None:
    for name, make in CONDITIONS.items():
        rng = np.random.default_rng(1)
        exact = 0
        times = []
        for _ in range(num):
            scene = sample_scene(rng)
            picture = make(scene, rng)
            start = time.process_time()
            result = parse(picture)
            times.append((time.process_time() - start) * 1000)
            exact += exact_match(scene, result.scene)
        mean, median, late = np.mean(times), np.median(times), np.percentile(times, 95)
        print(
            f"read {name:18s} exact {exact}/{num} = {exact / num:.2%}; "
            f"ms of processor time: mean {mean:.2f}, median {median:.2f}, 95th percentile {late:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=300, help="scenes for each line")
    num = parser.parse_args().num
    drawing(num)
    reading(num)


if __name__ == "__main__":
    main()
