import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.film import COLUMNS, FRAMES, animation, evenly, forward_states, strip
from diffusion.grid import PADDING, image_grid
from diffusion.process import Diffusion, DiffusionConfig


def states(num_states, num_images=4, channels=3):
    draws = torch.Generator().manual_seed(0)
    shape = (num_images, channels, 8, 8)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws) for _ in range(num_states)]


@pytest.mark.parametrize("num", [1, 2, 10, 11, 50, 1000])
def test_what_is_shown_begins_with_the_first_and_ends_with_the_last(num):
    shown = evenly(num, 11)

    assert shown[0] == 0
    assert shown[-1] == num - 1
    assert len(shown) == len(set(shown)) == min(num, 11)
    assert shown == sorted(shown)


@pytest.mark.parametrize("num_states", [2, 11, 51])
def test_a_strip_has_a_row_a_picture_from_its_first_state_to_its_last(num_states):
    given = states(num_states)
    found = strip(given)
    cells = found[PADDING:, PADDING:].reshape(4, 8 + PADDING, min(num_states, COLUMNS), 8 + PADDING, 3)
    for row in range(4):
        assert (cells[row, :8, 0, :8] == given[0][row].permute(1, 2, 0).numpy()).all()
        assert (cells[row, :8, -1, :8] == given[-1][row].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(("num_states", "channels"), [(6, 1), (6, 3), (200, 1)])
def test_an_animation_goes_through_the_states_and_stays_at_the_last(num_states, channels):
    given = states(num_states, channels=channels)
    with Image.open(io.BytesIO(animation(given, num_columns=2))) as film:
        durations = []
        for frame in range(film.n_frames):
            film.seek(frame)
            durations.append(film.info["duration"])
        last = np.asarray(film.convert("L" if channels == 1 else "RGB"))
        film.seek(0)

        assert film.format == "GIF"
        assert film.info["loop"] == 0
        assert film.n_frames == min(num_states, FRAMES)
    expected = image_grid(given[-1], 2)
    assert durations[-1] > 3 * durations[0]
    assert np.abs(last.astype(int) - expected.squeeze()).mean() < (1 if channels == 1 else 30)  # a palette of 256


def test_forward_a_picture_fades_from_itself_to_noise():
    diffusion = Diffusion(DiffusionConfig())
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 2:6, 2:6] = 255
    found = forward_states(diffusion, images)
    alike = [np.corrcoef(images[0].flatten(), state[0].flatten())[0, 1] for state in found]

    assert torch.equal(found[0], images)
    assert alike[0] == pytest.approx(1)
    assert alike[1] > 0.99
    assert abs(alike[-1]) < 0.4
    assert [round(value, 1) for value in alike] == sorted((round(value, 1) for value in alike), reverse=True)
