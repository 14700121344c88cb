"""Encoded cells of every kind become the same pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from fedmitr_app.errors import DataError
from fedmitr_app.partitions.images import decode_all, to_pixels

GREY = np.arange(16, dtype=np.uint8).reshape(4, 4)
COLOUR = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["pillow", "bytes", "dict", "path", "dict-path", "array", "list"])
def test_every_kind_of_cell_gives_the_same_pixels(kind, tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(png(COLOUR))
    cell = {
        "pillow": Image.fromarray(COLOUR),
        "bytes": png(COLOUR),
        "dict": {"bytes": png(COLOUR), "path": None},
        "path": file,
        "dict-path": {"bytes": None, "path": str(file)},
        "array": COLOUR,
        "list": COLOUR.tolist(),
    }[kind]
    assert (to_pixels(cell, 4, 3, (tmp_path,)) == COLOUR.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("array", [GREY, GREY[..., None], GREY[None]])
def test_grey_arrays(array):
    assert (to_pixels(array, 4, 1) == GREY[None]).all()


def test_channels_first_arrays():
    assert (to_pixels(COLOUR.transpose(2, 0, 1), 4, 3) == COLOUR.transpose(2, 0, 1)).all()


def test_channels_are_converted():
    assert (to_pixels(GREY, 4, 3) == GREY[None]).all()
    assert to_pixels(COLOUR, 4, 1).shape == (1, 4, 4)


def test_transparent_palette_images_become_colour():
    image = Image.fromarray(COLOUR).convert("P")
    image.info["transparency"] = 0
    assert to_pixels(image, 4, 3).shape == (3, 4, 4)


def test_longer_side_is_cut_to_the_middle():
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 200
    assert (to_pixels(wide, 4, 1) == 200).all()


def test_bicubic_resize_keeps_a_flat_image_flat():
    assert (to_pixels(np.full((5, 5), 77, dtype=np.uint8), 9, 1) == 77).all()


@pytest.mark.parametrize(
    "cell",
    [
        b"not an image",
        png(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))[:200],
        None,
        {"bytes": None, "path": None},
        {"bytes": None, "path": "nowhere.png"},
        np.zeros((4, 4)),
        np.full((4, 4), 256),
        np.zeros(4, dtype=np.uint8),
        Image.new("I;16", (4, 4)),
        Image.new("F", (4, 4)),
    ],
)
def test_unreadable_image_is_one_sentence(cell):
    with pytest.raises(DataError) as error:
        decode_all([cell], 1, size=4, channels=1, where="data.path = 'x'")
    message = str(error.value)
    assert "data.path = 'x'" in message and "not a readable 8-bit image" in message
    assert "\n" not in message


def test_unreadable_image_is_named():
    with pytest.raises(DataError, match=r"'broken\.png'"):
        decode_all(
            [{"bytes": b"?", "path": "broken.png"}], 1, size=4, channels=1, where="somewhere"
        )
