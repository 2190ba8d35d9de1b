"""The model card: what somebody who finds a version in the registry should know before using it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..metrics.lines import metric_lines

if TYPE_CHECKING:
    from diffusion.checkpoint import Model

    from ..tracking import ModelVersion

DRAW = """```python
import mlflow, pandas
model = mlflow.pyfunc.load_model("{uri}")
pictures = model.predict(pandas.DataFrame({columns}))["png"]  # PNG files, as bytes
```"""

PIPELINE = """```python
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained("diffusers")
image = pipeline(batch_size=1).images[0]
```"""

NETWORK = """```python
import torch
from diffusers import DDPMScheduler, UNet2DModel
unet = UNet2DModel.from_pretrained("diffusers/unet")
scheduler = DDPMScheduler.from_pretrained("diffusers/scheduler")
x, labels = torch.randn(1, {channels}, {side}, {side}), torch.tensor([0])
for t in scheduler.timesteps:
    with torch.no_grad():
        x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x).prev_sample
```"""


def model_card(version: ModelVersion, model: Model, metrics: dict[str, float] | None = None) -> str:
    """Markdown: what the model draws, of which data and run it is, how to draw from it, and how good it is measured."""
    shape, num_timesteps = model.unet.config, model.diffusion.num_timesteps
    of = f" of {len(model.classes)} classes ({', '.join(model.classes[:20])})" if model.classes else ""
    facts = {
        "data": f"digest `{version.tags['ddpm.dataset_digest']}`, at `{version.tags['ddpm.dataset_uri']}`",
        "training run": f"`{version.run_id}`",
        "weights": f"sha256 `{version.tags['ddpm.weights_sha256']}`",
        "parameters": f"{sum(weights.numel() for weights in model.unet.parameters()):,}",
        "timesteps": f"{num_timesteps:,}, {model.diffusion.config.schedule} schedule, "
        f"predicts {model.diffusion.config.prediction}",
        "licence": "not stated; the licence of the data comes first",
        "intended use": "pictures like those of the data; no likeness of a person, and no evidence of anything",
    }
    numbers = [f"- {line}" for line in metric_lines(metrics or {})]
    if metrics:
        of = f"Of {metrics['n']:,.0f} samples, beside the training data:" if "n" in metrics else "Of held-out pictures:"
        numbers = ["", "## Numbers", "", of, "", *numbers]
    columns = '{"seed": [0, 1], "label": [0, 1]}' if model.classes else '{"seed": [0, 1]}'
    return "\n".join([
        f"# {version.name}, version {version.version}",
        "",
        f"A denoising diffusion model (DDPM) of {shape.image_size}x{shape.image_size} "
        f"{'grey' if shape.image_channels == 1 else 'colour'} pictures{of}.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        *numbers,
        "",
        "## Drawing from it",
        "",
        DRAW.format(uri=version.uri, columns=columns),
        "",
        "With diffusers, from the artifact folder `diffusers/`, if there is one:",
        "",
        NETWORK.format(channels=shape.image_channels, side=shape.image_size) if model.classes else PIPELINE,
    ])  # fmt: skip
