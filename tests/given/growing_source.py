"""A folder of digits that grows."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def add_digits(folder, numbers):
    """These of scikit-learn's digits as files, a subfolder a class."""
    digits = load_digits()
    for number in numbers:
        file = folder / str(digits.target[number]) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(file)
