import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.unet import Downsample, UNet, UNetConfig, Upsample, sinusoidal

SMALL = {"image_size": 8, "base_channels": 8, "norm_groups": 4, "channel_mults": (1, 2), "num_res_blocks": 1}
OUR_BLOCK_IN_THEIRS = {
    "norm1": "resnets.{i}.norm1",
    "conv1": "resnets.{i}.conv1",
    "embedding": "resnets.{i}.time_emb_proj",
    "norm2": "resnets.{i}.norm2",
    "conv2": "resnets.{i}.conv2",
    "skip": "resnets.{i}.conv_shortcut",
    "attention.norm": "attentions.{i}.group_norm",
    "attention.query": "attentions.{i}.to_q",
    "attention.key": "attentions.{i}.to_k",
    "attention.value": "attentions.{i}.to_v",
    "attention.out": "attentions.{i}.to_out.0",
}
OUR_ENDS_IN_THEIRS = {
    "conv_in": "conv_in",
    "time_embedding.0": "time_embedding.linear_1",
    "time_embedding.2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def diffusers_unet(config):
    """Their network of the same shape."""
    sides = [config.image_size // 2**level for level in range(len(config.channel_mults))]
    attends = [side in config.attention_resolutions for side in sides]
    return UNet2DModel(
        sample_size=config.image_size,
        in_channels=config.image_channels,
        out_channels=config.output_channels,
        attention_head_dim=config.head_channels or None,
        block_out_channels=tuple(config.base_channels * mult for mult in config.channel_mults),
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        layers_per_block=config.num_res_blocks,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=config.norm_groups,
        attn_norm_num_groups=config.norm_groups,
        resnet_time_scale_shift="scale_shift" if config.scale_shift_norm else "default",
    ).eval()


def names_in_theirs(model):
    """The name in diffusers of every layer of ours that has weights."""
    names = dict(OUR_ENDS_IN_THEIRS)
    for side, resample, resampler in [("down", Downsample, "downsamplers"), ("up", Upsample, "upsamplers")]:
        level, i = 0, 0
        for n, module in enumerate(getattr(model, side)):
            if isinstance(module, resample):
                names[f"{side}.{n}.conv"] = f"{side}_blocks.{level}.{resampler}.0.conv"
                level, i = level + 1, 0
            else:
                for ours, theirs in OUR_BLOCK_IN_THEIRS.items():
                    names[f"{side}.{n}.{ours}"] = f"{side}_blocks.{level}.{theirs.format(i=i)}"
                i += 1
    for i in range(2):
        for ours, theirs in OUR_BLOCK_IN_THEIRS.items():
            names[f"middle.{i}.{ours}"] = f"mid_block.{theirs.format(i=i)}"
    return names


def with_weights_of(theirs, config):
    """Our network with their weights; fails if a weight of either side is left over."""
    ours, weights = UNet(config).eval(), theirs.state_dict()
    names = names_in_theirs(ours)
    transplanted = {}
    for name, weight in ours.state_dict().items():
        layer, _, kind = name.rpartition(".")
        transplanted[name] = weights.pop(f"{names[layer]}.{kind}").view_as(weight)  # a 1x1 convolution may be a Linear
    assert not weights, f"left over: {sorted(weights)}"
    ours.load_state_dict(transplanted)
    return ours


@torch.no_grad()
def randomised(model, seed=0):
    """The same model with no weight at zero or one, so that every path matters."""
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = max(parameter[0].numel(), 1)
        noise = torch.randn(parameter.shape, generator=draws)
        parameter.copy_(noise / fan_in**0.5 if parameter.dim() > 1 else parameter + 0.3 * noise)
    return model


def pictures(config, batch=2, seed=0):
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"base_channels": 32}, id="canonical topology"),
        pytest.param({"base_channels": 32, "image_channels": 1, "image_size": 28, "channel_mults": (1, 2)}, id="grey"),
        pytest.param(
            {
                "image_channels": 4,
                "image_size": 16,
                "base_channels": 8,
                "norm_groups": 2,
                "channel_mults": (1, 3, 2),
                "num_res_blocks": 3,
                "attention_resolutions": (16, 4),
            },
            id="uneven",
        ),
        pytest.param({"base_channels": 32, "head_channels": 16, "attention_resolutions": (16, 8)}, id="heads"),
        pytest.param({"base_channels": 32, "scale_shift_norm": True}, id="scale and shift"),
        pytest.param({"base_channels": 32, "learned_variance": True, "image_channels": 2}, id="variance"),
    ],
)
@torch.no_grad()
def test_forward_equals_diffusers_with_the_same_weights(options):
    config = UNetConfig(**options)
    theirs = randomised(diffusers_unet(config))
    ours = with_weights_of(theirs, config)
    x_t, t = pictures(config, batch=3), torch.tensor([0, 17, 999])
    answer, expected = ours(x_t, t), theirs(x_t, t).sample

    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


def test_the_default_network_has_the_canonical_number_of_parameters():
    with torch.device("meta"):
        model = UNet(UNetConfig())

    assert sum(parameter.numel() for parameter in model.parameters()) == 35_746_307


def shapes(**options):
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in UNet(UNetConfig(**SMALL | options)).state_dict().items()}


def test_the_number_of_heads_changes_no_weights_shape():
    assert shapes(head_channels=4) == shapes(head_channels=0)


@torch.no_grad()
def test_several_heads_give_another_answer_than_one():
    one, many = (randomised(UNet(UNetConfig(**SMALL, head_channels=width))).eval() for width in (0, 4))
    x_t, t = pictures(one.config), torch.tensor([3, 900])

    assert (one(x_t, t) - many(x_t, t)).abs().max() > 1e-3


def test_scale_and_shift_ask_twice_as_much_of_the_embedding_of_every_block_and_nothing_else():
    plain, scaled = shapes(), shapes(scale_shift_norm=True)
    of_embedding = {name for name in plain if ".embedding." in name}

    assert plain.keys() == scaled.keys()
    assert all(scaled[name] == (2 * plain[name][0], *plain[name][1:]) for name in of_embedding)
    assert all(scaled[name] == plain[name] for name in plain.keys() - of_embedding)
    assert len(of_embedding) == 2 * (2 + 2 + 4)  # weight and bias of the blocks down, in the middle and up


@pytest.mark.parametrize("image_channels", [1, 2, 3, 4])
def test_a_learned_variance_doubles_the_channels_of_the_answer_and_nothing_else(image_channels):
    plain, learned = shapes(image_channels=image_channels), shapes(image_channels=image_channels, learned_variance=True)
    changed = {name for name in plain if plain[name] != learned[name]}
    config = UNetConfig(**SMALL, image_channels=image_channels, learned_variance=True)

    assert plain.keys() == learned.keys()
    assert changed == {"conv_out.weight", "conv_out.bias"}
    assert learned["conv_out.bias"] == (2 * image_channels,)
    assert UNet(config)(pictures(config), torch.tensor([0, 1])).shape == (2, 2 * image_channels, 8, 8)
    assert config.output_channels == 2 * image_channels


def test_the_default_network_attends_at_16_pixels_and_in_the_middle():
    with torch.device("meta"):
        model = UNet(UNetConfig())
    attending = {name.partition(".attention")[0] for name, _ in model.named_parameters() if ".attention." in name}

    assert attending == {"down.3", "down.4", "middle.0", "up.8", "up.9", "up.10"}


@pytest.mark.parametrize("width", [4, 8, 128])
def test_the_time_embedding_equals_that_of_diffusers(width):
    t = torch.tensor([0, 1, 2, 17, 500, 999])
    theirs = get_timestep_embedding(t, width, flip_sin_to_cos=False, downscale_freq_shift=1)

    torch.testing.assert_close(sinusoidal(t, width), theirs, rtol=0, atol=1e-4)  # float32 angles up to 999


def test_the_narrowest_time_embedding_is_the_sine_and_cosine_of_t():
    t = torch.tensor([0, 1, 999])

    torch.testing.assert_close(sinusoidal(t, 2), torch.stack([t.float().sin(), t.float().cos()], dim=1))


@pytest.mark.parametrize(
    "options", [{}, {"scale_shift_norm": True}, {"head_channels": 4}, {"learned_variance": True}, {"num_res_blocks": 2}]
)
def test_a_new_network_answers_zero(options):
    config = UNetConfig(**SMALL | options)
    answer = UNet(config)(pictures(config), torch.tensor([0, 999]))

    assert torch.equal(answer, torch.zeros_like(answer))


@torch.no_grad()
def test_the_answer_depends_on_the_timestep():
    config = UNetConfig(**SMALL)
    model, x_t = randomised(UNet(config)).eval(), pictures(config)
    early, late = model(x_t, torch.tensor([1, 1])), model(x_t, torch.tensor([900, 900]))

    assert (early - late).abs().max() > 0.01


@torch.no_grad()
def test_every_label_and_the_null_class_give_an_answer_of_their_own():
    config = UNetConfig(**SMALL, num_classes=3)
    model, x_t, t = randomised(UNet(config)).eval(), pictures(config, batch=1), torch.tensor([10])
    answers = torch.cat([model(x_t, t, torch.tensor([label])) for label in range(4)])

    assert torch.pdist(answers.flatten(1)).min() > 0.01


@torch.no_grad()
def test_a_picture_is_answered_as_if_it_were_alone():
    config = UNetConfig(**SMALL, num_classes=3)
    model, x_t = randomised(UNet(config)).eval(), pictures(config, batch=3)
    t, labels = torch.tensor([0, 500, 999]), torch.tensor([2, 0, 3])
    together = model(x_t, t, labels)
    alone = torch.cat([model(x_t[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(3)])

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_dropout_acts_in_training_only():
    config = UNetConfig(**SMALL, dropout=0.5)
    model, x_t, t = randomised(UNet(config)), pictures(config), torch.tensor([3, 4])
    first, second = model.train()(x_t, t), model(x_t, t)
    calm, again = model.eval()(x_t, t), model(x_t, t)

    assert not torch.equal(first, second)
    assert torch.equal(calm, again)


@pytest.mark.parametrize("scale_shift_norm", [False, True])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_loss_reaches_every_parameter(num_classes, scale_shift_norm):
    config = UNetConfig(**SMALL, num_classes=num_classes, scale_shift_norm=scale_shift_norm)
    model = randomised(UNet(config))
    labels = torch.tensor([0, 3]) if num_classes else None
    model(pictures(config), torch.tensor([3, 4]), labels).square().mean().backward()
    unreached = [name for name, parameter in model.named_parameters() if parameter.grad is None]

    assert unreached == []


def gradients(model, x_t, checkpointing):
    model.checkpointing = checkpointing
    model.zero_grad()
    torch.manual_seed(0)
    model(x_t, torch.tensor([3, 900])).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"dropout": 0.4}, {"scale_shift_norm": True, "head_channels": 4}])
def test_recomputing_blocks_in_the_backward_pass_gives_the_same_gradients(options):
    model = randomised(UNet(UNetConfig(**{"dropout": 0.0} | SMALL | options))).train()
    x_t, runs = pictures(model.config), []
    model.middle[0].register_forward_pre_hook(lambda *_: runs.append(1))
    kept = gradients(model, x_t, checkpointing=False)
    num_kept = len(runs)
    recomputed = gradients(model, x_t, checkpointing=True)

    assert (num_kept, len(runs)) == (1, 1 + 2)
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in kept.items())


@torch.no_grad()
def test_checkpointing_changes_nothing_outside_training():
    model = randomised(UNet(UNetConfig(**SMALL))).eval()
    x_t, t = pictures(model.config), torch.tensor([3, 900])
    before = model(x_t, t)
    model.checkpointing = True

    assert torch.equal(model(x_t, t), before)


@st.composite
def configs(draw):
    levels = draw(st.integers(1, 3))
    image_size = draw(st.integers(1, 5)) * 2 ** (levels - 1)
    sides = [image_size // 2**level for level in range(levels)]
    norm_groups = draw(st.sampled_from([1, 2, 4]))
    return UNetConfig(
        image_size=image_size,
        image_channels=draw(st.integers(1, 4)),
        num_classes=draw(st.sampled_from([0, 1, 10])),
        base_channels=2 * norm_groups * draw(st.integers(1, 2)),
        channel_mults=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        num_res_blocks=draw(st.integers(1, 2)),
        attention_resolutions=tuple(draw(st.sets(st.sampled_from(sides)))),
        norm_groups=norm_groups,
        head_channels=draw(st.sampled_from([0, 1, 2])),
        scale_shift_norm=draw(st.booleans()),
        learned_variance=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(1, 3))
@torch.no_grad()
def test_any_allowed_shape_gives_a_finite_answer_of_the_size_of_the_picture(config, batch):
    model, x_t = randomised(UNet(config)), pictures(config, batch)
    labels = torch.full((batch,), config.num_classes) if config.num_classes else None
    answer = model(x_t, torch.arange(batch), labels)

    assert answer.shape == (batch, config.output_channels, config.image_size, config.image_size)
    assert answer.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_mults": ()}, r"channel_mults must be one or more positive integers, got \(\)"),
        ({"channel_mults": (1, 0)}, r"channel_mults must be one or more positive integers, got \(1, 0\)"),
        ({"channel_mults": (-1,)}, r"channel_mults must be one or more positive integers, got \(-1,\)"),
        ({"image_size": 33}, "image_size must be a positive multiple of 8 for 4 levels, got 33"),
        ({"head_channels": -1}, "head_channels must be 0 .* or divide every level's width .*128, 256.*, got -1"),
        ({"head_channels": 96}, "head_channels must be 0 .* or divide every level's width .*128, 256.*, got 96"),
        ({"head_channels": 256}, "head_channels must be 0 .* or divide every level's width .*128, 256.*, got 256"),
        ({"image_size": 30}, "image_size must be a positive multiple of 8 for 4 levels, got 30"),
        ({"image_size": 0}, "image_size must be a positive multiple of 8 for 4 levels, got 0"),
        ({"image_size": -8}, "image_size must be a positive multiple of 8 for 4 levels, got -8"),
        ({"image_channels": 0}, "image_channels must be 1 to 4, got 0"),
        ({"image_channels": 5}, "image_channels must be 1 to 4, got 5"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"base_channels": 48}, "base_channels must be a positive multiple of norm_groups=32, got 48"),
        ({"base_channels": 0}, "base_channels must be a positive multiple of norm_groups=32, got 0"),
        ({"base_channels": -32}, "base_channels must be a positive multiple of norm_groups=32, got -32"),
        ({"norm_groups": 0}, "norm_groups=0"),
        ({"norm_groups": -1}, "norm_groups=-1"),
        ({"base_channels": 5, "norm_groups": 1}, "base_channels must be even, got 5"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
        ({"dropout": float("nan")}, r"dropout must lie in \[0, 1\), got nan"),
    ],
)
def test_an_impossible_shape_is_refused_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**options)


@pytest.mark.parametrize("shape", [(2, 3, 8, 4), (2, 1, 8, 8), (2, 3, 16, 16), (3, 8, 8)])
def test_a_picture_of_another_shape_is_refused_with_its_shape(shape):
    model = UNet(UNetConfig(**SMALL))

    with pytest.raises(ValueError, match=r"x_t must have shape \[b, 3, 8, 8\], got \[" + ", ".join(map(str, shape))):
        model(torch.zeros(shape), torch.tensor([0, 1]))


def test_labels_given_to_an_unconditional_network_are_refused():
    config = UNetConfig(**SMALL)

    with pytest.raises(ValueError, match="an unconditional model takes no labels"):
        UNet(config)(pictures(config), torch.tensor([0, 1]), torch.tensor([0, 1]))


def test_a_conditional_network_asks_for_labels_and_says_how_many_classes():
    config = UNetConfig(**SMALL, num_classes=7)

    with pytest.raises(ValueError, match="labels must be given: the model has 7 classes"):
        UNet(config)(pictures(config), torch.tensor([0, 1]))
