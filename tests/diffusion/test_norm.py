"""The compiled norm says what the eager one says. What is drawn for dropout does not depend on which is used."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from diffusion.norm import Norm, dropout, keep_mask

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def norm(channels, groups=4, seed=0):
    made, draws = Norm(groups, channels), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.copy_(1 + 0.3 * torch.randn(channels, generator=draws))
        made.bias.copy_(0.3 * torch.randn(channels, generator=draws))
    return made


def picture(*shape, seed=0):
    x = 1.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    return x.contiguous(memory_format=torch.channels_last)


def test_a_norm_is_torchs_group_norm_with_what_stands_around_it():
    x, shift, made = picture(2, 8, 4, 4), torch.randn(2, 8), norm(8)
    expected = F.silu(F.group_norm(x + shift[:, :, None, None], 4, made.weight, made.bias, eps=1e-6))

    torch.testing.assert_close(made(x, shift), expected)
    torch.testing.assert_close(made(x, act=False), F.group_norm(x, 4, made.weight, made.bias, eps=1e-6))


def answer(made, x, shift, dy, seed=0, **options):
    """The output in float32 and the gradients of all that went in, by name."""
    x, leaves = x.detach().clone().requires_grad_(), {"weight": made.weight, "bias": made.bias}
    shift = None if shift is None else shift.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    y = made(x, shift, **options)
    inputs = {"x": x, **leaves, **({} if shift is None else {"shift": shift})}
    gradients = torch.autograd.grad(y, list(inputs.values()), dy.to(y.dtype))
    return {"y": y.float(), **{name: g.float() for name, g in zip(inputs, gradients, strict=True)}}


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [
        {"shape": (3, 16, 8, 8), "shift": True, "drop": 0.3},
        {"shape": (3, 16, 8, 8), "shift": True, "drop": 0.0},
        {"shape": (2, 8, 16, 16), "shift": False, "drop": 0.0},
        {"shape": (2, 8, 4, 4), "shift": False, "drop": 0.0, "act": False},
        {"shape": (4, 32, 2, 2), "shift": True, "drop": 0.1},
    ],
)
def test_compiled_and_eager_norms_agree_in_value_and_every_gradient(options):
    shape, channels = options["shape"], options["shape"][1]
    kept = {name: options[name] for name in ("act", "drop") if name in options}
    x, dy = picture(*shape).bfloat16(), picture(*shape, seed=1).bfloat16()
    shift = torch.randn(shape[0], channels, generator=torch.Generator().manual_seed(2)) if options["shift"] else None
    made, exact = norm(channels), norm(channels)
    made.compiled = True
    found = answer(made, x, None if shift is None else shift.bfloat16(), dy, **kept)
    expected = answer(exact, x.float(), None if shift is None else shift.bfloat16().float(), dy.float(), **kept)

    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).norm() / value.norm()
        assert error < 0.01, name


@needs_compiler
def test_a_compiled_norm_is_bitwise_repeatable():
    made, x, dy = norm(16), picture(3, 16, 8, 8).bfloat16(), picture(3, 16, 8, 8, seed=1).bfloat16()
    made.compiled = True
    once, again = (answer(made, x, None, dy, seed=5, drop=0.3) for _ in range(2))

    assert all(torch.equal(once[name], again[name]) for name in once)


def test_float32_never_takes_the_compiled_way():
    made, x = norm(8), picture(1, 8, 4, 4)
    expected = made(x)
    made.compiled = True

    assert torch.equal(made(x), expected)


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_a_mask_drops_the_share_asked_for_everywhere_alike(drop):
    torch.manual_seed(0)
    keep = keep_mask(torch.empty(50, 7, 16, 16), drop).float()

    assert keep.shape == (50, 256, 7)
    assert keep.mean().item() == pytest.approx(1 - drop, abs=0.005)
    assert (keep.mean(dim=(0, 1)) - (1 - drop)).abs().max() < 0.02
    assert torch.corrcoef(keep.flatten()[: 4 * 22_400].view(-1, 4).T).fill_diagonal_(0).abs().max() < 0.02


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_a_mask_is_as_large_as_the_picture_whatever_its_size(b, c, h, w):
    assert keep_mask(torch.empty(b, c, h, w), 0.5).shape == (b, h * w, c)


def test_dropout_keeps_the_mean_and_draws_from_torchs_generator():
    x = torch.ones(100, 8, 8, 8)
    torch.manual_seed(3)
    once = dropout(x, 0.25)
    torch.manual_seed(3)

    assert torch.equal(dropout(x, 0.25), once)
    assert not torch.equal(dropout(x, 0.25), once)
    assert once.mean().item() == pytest.approx(1, abs=0.02)
    assert set(once.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(dropout(x, 0.0), x)
