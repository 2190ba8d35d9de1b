"""An exponential moving average of the weights: the smooth copy that samples are drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class Ema:
    """Averages the parameters (never the buffers) of a model: average += (1 - decay_k) (parameter - average).

    The decay warms up as min(decay, (1 + k) / (10 + k)) after k updates, so that a short run does not
    end on its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.num_updates = 0
        self.parameters: list[Tensor] = list(model.parameters())
        self.averages = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present parameters; call once an optimiser step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.averages.values()), self.parameters, 1 - decay)
        self.num_updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name: the state_dict of a model without buffers."""
        return self.averages

    def load(self, averages: dict[str, Tensor], num_updates: int) -> None:
        """Continue from saved averages. Raises ValueError if they are not of this model's parameters."""
        for name, average in self.averages.items():
            if name not in averages or averages[name].shape != average.shape:
                found = tuple(averages[name].shape) if name in averages else "absent"
                raise ValueError(
                    f"averages are of another network: {name} should be {tuple(average.shape)}, is {found}"
                )
            average.copy_(averages[name])
        self.num_updates = num_updates
