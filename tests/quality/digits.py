"""Are the demo's digits digits, and not copies? Run after `make demo`: make quality.

An SVM fitted on 70% of the real digits (upscaled as the demo does) reads 500 samples drawn through MLflow's
pyfunc from models:/digits@champion with its own sampler settings. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import io
import sys

import mlflow
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder
from workflows.metrics.features import read_first

NUM_SAMPLES = 500
MIN_AGREEMENT, MIN_CLASS_AGREEMENT, MIN_DISTANCE_RATIO = 0.97, 0.90, 0.8
FIRST_SEED = 10_000


def main(storage: str = "runs") -> int:
    folder = Folder(storage)
    mlflow.set_tracking_uri(f"sqlite:///{folder.path}/mlflow.db")
    labels = np.arange(NUM_SAMPLES) % 10
    samples = draw(labels)
    shards = open_shard_set(folder / "data/digits")
    known, held_out = (flat(read_first(shards, split, 10_000)[0].numpy()) for split in ("train", "val"))

    agrees = classifier().predict(samples) == labels
    by_class = [agrees[labels == digit].mean() for digit in range(10)]
    ratio = np.median(nearest(samples, known)) / np.median(nearest(held_out, known))

    print(f"SVM agrees on {agrees.mean():.1%} of {NUM_SAMPLES} samples (at least {MIN_AGREEMENT:.0%})")
    print(f"worst class {min(by_class):.1%} (at least {MIN_CLASS_AGREEMENT:.0%}):", *(f"{a:.0%}" for a in by_class))
    print(
        f"nearest training image: {ratio:.3f} of the median distance of held-out digits (at least {MIN_DISTANCE_RATIO})"
    )
    good = agrees.mean() >= MIN_AGREEMENT and min(by_class) >= MIN_CLASS_AGREEMENT and ratio >= MIN_DISTANCE_RATIO
    return 0 if good else 1


def draw(labels: np.ndarray) -> np.ndarray:
    """Samples [n, 256] in [0, 1], with seeds that the demo did not use."""
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    rows = pd.DataFrame({"seed": FIRST_SEED + np.arange(len(labels)), "label": labels})
    pictures = model.predict(rows)["png"]
    return flat(np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in pictures]))


def classifier() -> SVC:
    digits = load_digits()
    sized = [
        Image.fromarray((image / 16 * 255).round().astype(np.uint8)).resize((16, 16), Image.Resampling.LANCZOS)
        for image in digits.images
    ]
    images = flat(np.stack([np.asarray(image) for image in sized]))
    fit_on, test_on, fit_labels, test_labels = train_test_split(
        images, digits.target, train_size=0.7, random_state=0, stratify=digits.target
    )
    svm = SVC(C=10).fit(fit_on, fit_labels)
    print(f"the SVM reads {svm.score(test_on, test_labels):.1%} of the real digits that it was not fitted on")
    return svm


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def nearest(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.array([np.linalg.norm(references - query, axis=1).min() for query in queries])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
