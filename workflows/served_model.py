"""The model as MLflow serves it: this file, verbatim, is the code that is logged with the weights.

It runs where this project is not installed. What it needs of `diffusion` travels beside it as a package named by
the hash of its content, so that two versions loaded in one process each run their own code.
"""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow is not typed
    """`predict(DataFrame[seed, label?], params={steps, sampler, guidance, …})` gives `DataFrame[seed, png]`."""

    def load_context(self, context: Any) -> None:
        """Load the weights, with the code that was packaged with them."""
        folder = Path(context.artifacts["model"])
        package = (folder / "package.txt").read_text().strip()
        self.sampling = importlib.import_module(f"{package}.sampling")
        self.model = importlib.import_module(f"{package}.checkpoint").load_model(
            lambda name: (folder / name).read_bytes()
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002 - MLflow's signature
        """A PNG for each row; row by row the same for a seed alone or among others.

        Without a `label` column a class-conditional model draws any class. Raises MlflowException for impossible
        values, which a server answers with status 400 and what is wrong.
        """
        try:
            return self._draw(model_input, params or {})
        except ValueError as err:
            raise MlflowException.invalid_parameter_value(str(err)) from err

    def _draw(self, model_input: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        num_classes = self.model.unet.config.num_classes
        seeds = [int(seed) for seed in model_input["seed"]]
        settings = {**self.model.sampler, **params}
        labels = None
        if "label" in model_input:
            labels = [int(label) for label in model_input["label"]]
        elif num_classes:
            labels, settings["guidance"] = [num_classes] * len(seeds), 1.0
        config = self.sampling.SamplerConfig(**settings)
        chunks = self.sampling.sample_images(
            self.model.unet, self.model.diffusion, seeds, labels, config, self.model.chunk
        )
        return pd.DataFrame({"seed": seeds, "png": [_png(image) for chunk in chunks for image in chunk]})


def _png(image: Tensor) -> bytes:
    pixels = image.permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(out, format="PNG")
    return out.getvalue()


mlflow.models.set_model(ServedModel())
