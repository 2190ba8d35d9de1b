import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.grid import PADDING, WHITE, image_grid


def pixels(num_images, height=3, width=4, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 255, (num_images, channels, height, width), dtype=torch.uint8, generator=generator)


def cell(grid, row, column, height, width):
    top, left = PADDING + row * (height + PADDING), PADDING + column * (width + PADDING)
    return grid[top : top + height, left : left + width]


@given(st.integers(1, 12), st.integers(1, 5), st.sampled_from([1, 3]))
def test_every_picture_is_in_its_place_row_by_row_on_white(num_images, num_columns, channels):
    images = pixels(num_images, channels=channels)
    grid = image_grid(images, num_columns)
    num_rows = -(-num_images // num_columns)
    for index in range(num_images):
        place = cell(grid, *divmod(index, num_columns), 3, 4)

        assert (place == images[index].permute(1, 2, 0).numpy()).all()
        place[:] = WHITE

    assert grid.shape == (PADDING + num_rows * (3 + PADDING), PADDING + num_columns * (4 + PADDING), channels)
    assert (grid == WHITE).all()  # nothing else was drawn


@pytest.mark.parametrize("scale", [2, 5])
def test_an_enlarged_grid_repeats_every_pixel(scale):
    images = pixels(4)  # 4 wide
    plain, large = image_grid(images, 2), image_grid(images, 2, 2 * 4 * scale + 7)

    assert large.shape == (plain.shape[0] * scale, plain.shape[1] * scale, 3)
    for row in range(scale):
        for column in range(scale):
            assert (large[row::scale, column::scale] == plain).all()


def test_drawing_a_grid_leaves_the_pictures_alone():
    images = pixels(5)
    before = images.clone()
    image_grid(images, 3)[:] = 0

    assert torch.equal(images, before)
