"""Draws the pictures of diffusion/README.md, from nothing: make docs.

The digits preset is trained as `ddpm run digits` does it, but without Ray; then the library's own functions are
watched at work. Two minutes on one core. A second run on the same machine gives the same bytes.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from figures import PLOT_HEIGHT, legend_beside, plots, say, strips

from diffusion.data.loader import SampleReader, batches
from diffusion.data.plan import make_plan
from diffusion.data.shard_set import commit_plan
from diffusion.data.shards import make_shard
from diffusion.ema import Ema, Snapshot, fixed, power, reconstruction_weights
from diffusion.files import Folder
from diffusion.likelihood import bits_per_dim
from diffusion.loss import loss, split_output
from diffusion.noisy import draw_noise
from diffusion.process import CLEAN, Diffusion, DiffusionConfig, q_sample, q_step, split, target, to_unit_range
from diffusion.restore import RestoreConfig, damaged, restore_images
from diffusion.samplers import SPACINGS
from diffusion.sampling import SamplerConfig, image_noise, network_denoiser, sample_images, sample_trajectory
from diffusion.seeding import generator, image_seeds, key
from diffusion.training import Training, fit
from diffusion.unet import UNet
from workflows.commands.presets import digits
from workflows.metrics.features import read_first

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from numpy import ndarray
    from torch import Tensor

    from diffusion.data.shard_set import ShardSet
    from diffusion.ema import Profile
    from workflows.config import Config

FOLDER = Path(__file__).parents[2] / "diffusion/pictures"
T = "timestep t"


@dataclass(frozen=True)
class Learned:
    """What the pictures are drawn of: a trained model, and pictures that it has not seen, one of each class."""

    model: UNet
    diffusion: Diffusion
    held_out: Tensor

    def as_x0(self, digit: int) -> Tensor:
        """A held-out digit in [-1, 1], as a batch of one."""
        return to_unit_range(self.held_out[digit : digit + 1])

    def draw(self, labels: list[int], seeds: list[int], **options: object) -> Tensor:
        """Pictures of these labels from these seeds."""
        config = SamplerConfig(**options)
        return next(sample_images(self.model, self.diffusion, seeds, labels, config, chunk=len(seeds)))


def shard(config: Config, out: Folder) -> ShardSet:
    """What `ddpm shard digits` makes, byte for byte."""
    plan = make_plan(config.shard, out)
    return commit_plan(plan, [make_shard(plan, number, out) for number in plan.shards], out)


def learn(config: Config, shards: ShardSet) -> UNet:
    """The preset's network after its training, with the averaged weights."""
    torch.manual_seed(key(config.train.seed, "init") % 2**63)
    model = UNet(config.unet(shards.image_size, shards.channels, len(shards.classes)))
    training = Training(model, Diffusion(config.diffusion), config.train)
    known = batches(SampleReader(shards), config.train, 0, config.train.steps)
    noisy = draw_noise(known, config.train, model, training.diffusion)
    fit(training, noisy, lambda report: say(f"training: step {report.step} of {config.train.steps}"))
    model.load_state_dict(training.emas[0].state_dict())
    return model.eval()


def unit_noise(purpose: str, number: int, *shape: int) -> Tensor:
    """Unit Gaussians by purpose and number."""
    return torch.from_numpy(generator(0, purpose, step=number).standard_normal(shape, dtype=np.float32))


def chain(learned: Learned) -> Figure:
    """A picture destroyed step by step, and by one jump to the same timesteps; the law of both."""
    diffusion, shown = learned.diffusion, [0, 49, 99, 199, 399, 599, 799, 999]
    x0 = learned.as_x0(3)
    jumps = [q_sample(diffusion.alpha_bar_at(t), x0, unit_noise("jump", t, *x0.shape)) for t in shown]
    x, white, walked, laws = x0, torch.ones(40_000, 1, 1, 1), [], []
    for t, beta in enumerate(diffusion.betas):
        x = q_step(beta, x, unit_noise("chain", t, *x.shape))
        white = q_step(beta, white, unit_noise("white pixel", t, *white.shape))
        walked += [x] if t in shown else []
        laws += [(t, white.mean(), white.std())] if t % 50 == 49 else []

    rows = [("chain: q_step,\nt + 1 times", [x0, *walked]), ("jump: q_sample,\nonce", [x0, *jumps])]
    figure = strips(rows, ["x0", *(f"t = {t}" for t in shown)], below=PLOT_HEIGHT)
    _, (axes,) = plots((T, "x_t of a white pixel\n(x0 = 1)"), figure=figure)
    ts, means, deviations = zip(*laws, strict=True)
    axes.plot(diffusion.alphas_cumprod.sqrt(), color="C0", label="sqrt(alpha_bar)")
    axes.plot(ts, means, "o", color="C0", label="mean of 40,000 chains")
    axes.plot((1 - diffusion.alphas_cumprod).sqrt(), color="C1", label="sqrt(1 - alpha_bar)")
    axes.plot(ts, deviations, "s", color="C1", label="their standard deviation")
    legend_beside(axes)
    return figure


def schedules(learned: Learned) -> Figure:
    """How much of the picture is left at t, by schedule: to the eye, and as a number."""
    kinds = {name: Diffusion(DiffusionConfig(schedule=name)) for name in ("linear", "cosine", "sigmoid")}
    ts = torch.tensor([0, 50, 100, 200, 300, 400, 500, 600, 800, 999])
    x0, eps = learned.as_x0(3), unit_noise("schedules", 0, 1, 1, 16, 16)
    rows = [(name, q_sample(kind.alpha_bar(ts), x0, eps)) for name, kind in kinds.items()]
    figure = strips(rows, [f"t = {t}" for t in ts], below=PLOT_HEIGHT)
    _, (share, ratio) = plots((T, "alpha_bar"), (T, "SNR"), figure=figure)
    zero = Diffusion(DiffusionConfig(schedule="linear", zero_terminal_snr=True, prediction="v"))
    for name, kind in {**kinds, "linear with\nzero terminal SNR": zero}.items():
        alpha_bar, style = kind.alphas_cumprod, "--" if kind is zero else "-"
        share.plot(alpha_bar, style, label=name)
        ratio.semilogy(alpha_bar[:-1] / (1 - alpha_bar[:-1]), style, label=name)
    ratio.set_ylim(1e-8, 1e5)
    legend_beside(ratio)
    return figure


def answers(learned: Learned) -> Figure:
    """x_t at several t, what the network says of it without being told the class, and what follows from that."""
    ts = torch.tensor([20, 100, 200, 300, 400, 500, 600, 700, 800, 950])
    alpha_bar = learned.diffusion.alpha_bar(ts)
    x0 = learned.as_x0(5).expand(len(ts), -1, -1, -1)
    eps = unit_noise("answers", 0, 1, 1, 16, 16).expand_as(x0)
    x_t = q_sample(alpha_bar, x0, eps)
    with torch.inference_mode():
        output = learned.model(x_t, ts, torch.full_like(ts, learned.model.config.num_classes))
    said, _ = split_output(learned.diffusion, output)
    asked = learned.diffusion.config.prediction
    x0_hat, eps_hat = split(asked, alpha_bar, x_t, said)
    rows = [("given: x_t", x_t), (f"said: {asked}", said), (f"truth: {asked}", target(asked, alpha_bar, x0, eps))]
    rows += [("so x0 would be", x0_hat), ("truth: x0", x0), ("so eps would be", eps_hat), ("truth: eps", eps)]
    return strips(rows, [f"t = {t}" for t in ts])


def weights(learned: Learned) -> Figure:
    """What an answer that is off by 1 in x0 costs at t, in every loss."""
    asked = [
        ("simple, asking eps", {"prediction": "eps"}, {"color": "0.7", "linewidth": 5}),
        ("simple, asking v", {"prediction": "v"}, {"color": "C0"}),
        ("simple, asking x0", {"prediction": "x0"}, {"color": "C2"}),
        ("min_snr, asking any", {"prediction": "v", "loss": "min_snr"}, {"color": "C3", "linestyle": "--"}),
        ("vlb, asking any", {"prediction": "v", "loss": "vlb"}, {"color": "C4"}),
    ]
    figure, (axes,) = plots((T, "loss of an answer\noff by 1 in x0"))
    ts, zero = torch.arange(1, 1000), torch.zeros(999, 1, 1, 1)  # t = 0 is the decoder's in the bound, and no square
    for name, options, style in asked:
        diffusion = Diffusion(DiffusionConfig(schedule="cosine", **options))
        axes.semilogy(ts, loss(diffusion, off_by_one(diffusion), zero, ts, zero, None), label=name, **style)
    axes.set_ylim(1e-3, 1e5)
    legend_beside(axes)
    return figure


def off_by_one(diffusion: Diffusion) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A network that finds x0 = 1 in any x_t."""

    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha_bar = diffusion.alpha_bar(t)
        return target(diffusion.config.prediction, alpha_bar, *split("x0", alpha_bar, x_t, torch.ones_like(x_t)))

    return network


def back(learned: Learned) -> Figure:
    """One noise walked back by every sampler, seen on the way."""
    walks = {
        "ddpm\n1000 steps": SamplerConfig(sampler="ddpm", steps=1000, spacing="leading"),
        "ddim\n20 steps": SamplerConfig(sampler="ddim", steps=20, spacing="trailing"),
        "dpmpp\n20 steps": SamplerConfig(sampler="dpmpp", steps=20, spacing="trailing"),
        "heun\n10 steps, asks 19x": SamplerConfig(sampler="heun", steps=10, spacing="leading"),
    }
    shown, rows = [1000, 800, 600, 500, 400, 300, 200, 100, CLEAN], []
    for name, config in walks.items():
        reached = [1000, *SPACINGS[config.spacing](1000, config.steps)[1:], CLEAN]
        xs = list(sample_trajectory(learned.model, learned.diffusion, [3], [3], config))
        nearest = [min(range(len(xs)), key=lambda i: abs(reached[i] - wanted)) for wanted in shown]
        rows.append((name, [xs[i] for i in nearest]))
    return strips(rows, ["noise", *(f"t ≈ {t}" for t in shown[1:-1]), "picture"])


def steps(learned: Learned) -> Figure:
    """Pictures of the same two noises, as the network is asked more often."""
    labels, seeds, asked, rows = [2, 6], [20, 21], [5, 9, 19, 49, 199], []
    for sampler, spacing in {"ddpm": "trailing", "ddim": "trailing", "dpmpp": "trailing", "heun": "leading"}.items():
        counts = [(times + 1) // 2 if sampler == "heun" else times for times in asked]
        drawn = [learned.draw(labels, seeds, sampler=sampler, spacing=spacing, steps=count) for count in counts]
        rows.append((f"{sampler}, {spacing}", drawn))
    return strips(rows, [name for times in asked for name in (f"asked {times}x", "")])


def guidance(learned: Learned) -> Figure:
    """The same noises, drawn towards their labels more and more."""
    names = {0: "g = 0: as if\nwithout label", 1: "g = 1: asked once", 2: "g = 2", 4: "g = 4", 8: "g = 8"}
    seeds = image_seeds(0, 0, 10)
    rows = [(name, learned.draw(list(range(10)), seeds, steps=20, guidance=g)) for g, name in names.items()]
    return strips(rows, [f"label {label}" for label in range(10)])


def restored(learned: Learned) -> Figure:
    """Held-out pictures damaged and mended: a box painted in, noise taken out."""
    originals, seeds, rows = learned.held_out, image_seeds(0, 0, 10), []
    for names, config in (
        (("a box hidden", "painted in"), RestoreConfig(damage="box", steps=25)),
        (("noise of std 80", "taken out"), RestoreConfig(damage="noise", noise_std=80, steps=25)),
    ):
        images, keep = damaged(originals, config, unit_noise("damage", 0, *originals.shape))
        mended = restore_images(learned.model, learned.diffusion, images, keep, seeds, config, chunk=10)
        rows += zip(names, (images, torch.stack(list(mended))), strict=True)
    return strips([*rows, ("original", originals)], [str(label) for label in range(10)])


def bits(learned: Learned) -> Figure:
    """What every step back costs in bits per dimension, for held-out pictures."""
    denoise = network_denoiser(learned.model, learned.diffusion, torch.arange(10))
    noise = image_noise(learned.model, range(10), "bits")
    bound = bits_per_dim(denoise, learned.diffusion, to_unit_range(learned.held_out), noise)
    terms, ts = bound.terms.mean(dim=0), torch.arange(1, learned.diffusion.num_timesteps + 1)
    figure, (one, total) = plots(("t + 1", "bits per dimension"), ("t + 1", ""))
    one.loglog(ts, terms)
    one.set_title("L_t, each timestep")
    total.semilogx(ts, terms.cumsum(0))
    total.set(title="L_0 + … + L_t", ylim=(0, 8.2))
    total.axhline(8, color="0.5", linestyle=":")
    total.text(1, 7.9, "uncompressed", va="top", color="0.3")
    text = f"mean of 10 held-out digits\n\nL_0, the decoder: {terms[0]:.2f}\nL_1 + … + L_999: {terms[1:].sum():.2f}"
    text += f"\nL_T, the prior: {bound.prior.mean():.0e}\nall: {bound.total.mean():.2f}"
    total.text(1.06, 0.5, text, va="center", transform=total.transAxes)
    return figure


def averages(learned: Learned) -> Figure:
    """How much each training step's weights count in an average; one made afterwards of two others."""
    num = 1000
    snapshots = [Snapshot(std, at) for std in (0.05, 0.1) for at in range(100, num + 1, 100)]
    kept = {snapshot: profile_of(power(snapshot.std), snapshot.num_updates, num) for snapshot in snapshots}
    shares = reconstruction_weights(snapshots, Snapshot(0.15, num))
    made = sum(share * profile for share, profile in zip(shares, kept.values(), strict=True))
    figure, (axes,) = plots(("training step", "share in the average, %"))
    axes.plot(100 * profile_of(fixed(0.995), num, num), label="fixed, decay 0.995")
    axes.plot(100 * kept[Snapshot(0.05, num)], label="power, std 0.05")
    axes.plot(100 * kept[Snapshot(0.1, num)], label="power, std 0.10")
    axes.plot(100 * profile_of(power(0.15), num, num), color="0.7", linewidth=5, label="power, std 0.15")
    axes.plot(100 * made, "k", linewidth=1, label="0.15 afterwards, from\n10 snapshots each\nof 0.05 and 0.10")
    axes.set(xlim=(200, num), ylim=(0, 1.8))
    legend_beside(axes)
    return figure


def profile_of(profile: Profile, num_updates: int, num_steps: int) -> ndarray:
    """Every step's share in an average, read off a parameter that at step k is the k-th unit vector."""
    module = torch.nn.ParameterList([torch.zeros(num_steps)])
    ema = Ema(module, profile)
    with torch.no_grad():
        for k in range(num_updates):
            module[0].zero_()[k] = 1
            ema.update()
    return ema.state_dict()["0"].numpy()


PICTURES = (chain, schedules, answers, weights, back, steps, guidance, restored, bits, averages)


def main() -> None:
    """Train, draw, say how long it took."""
    started, config = time.monotonic(), digits()
    torch.set_num_threads(1)
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10})
    with tempfile.TemporaryDirectory() as folder:
        shards = shard(config, Folder(folder))
        images, labels = read_first(shards, "val", 10_000)
        held_out = torch.stack([images[labels == label][4] for label in range(10)])
        learned = Learned(learn(config, shards), Diffusion(config.diffusion), held_out)
    for draw in PICTURES:
        say(f"drawing: {draw.__name__}")
        draw(learned).savefig(FOLDER / f"{draw.__name__}.png", dpi=100, metadata={"Software": None})
    say(f"{len(PICTURES)} pictures in {FOLDER}, {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
