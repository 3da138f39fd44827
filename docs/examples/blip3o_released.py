"""BLIP3-o's released models in use; the test suite runs it on a small folder of their layout."""

from PIL import Image

import diptych


def draw_and_ask(folder: str) -> tuple[Image.Image, str]:
    """Draws a picture and asks about it."""
    model = diptych.load(folder, device="auto", dtype="auto")
    model.autoencoder.num_steps = 25  # of the decoder; 50 as released
    image = model.generate_image("A photo of a cute cat", seed=42)[0]
    answer = model.generate_text([image, "What is in this picture?"], max_new_tokens=64)
    return image, answer
