import re

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from diffusion.metrics import classifier as module
from diffusion.metrics.classifier import (
    accuracy,
    initial,
    load_classifier,
    mean_loss,
    save_classifier,
    shifted,
    train_classifier,
    turned,
)

NUM_TRAIN = 1400


def digits(side):
    """Pictures and labels, in a random order: those held out are by writers of the others."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    images = torch.from_numpy(found.images[order, None] * (255 / 16)).float()
    return F.interpolate(images, size=side, mode="bilinear").round().byte(), torch.from_numpy(found.target[order])


def pictures(num, side=16, channels=1):
    shape = (num, channels, side, side)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(num))


def untrained(channels=1, num_classes=10):
    return initial(channels, num_classes, seed=0).eval().requires_grad_(False)


def trained(images, labels, num_classes, seed=0):
    return train_classifier(
        lambda indices: (images[indices], labels[indices]), len(images), images.shape[1], num_classes, seed
    )


@pytest.mark.parametrize(("side", "steps"), [(8, 60), (16, 40)])
def test_it_learns_to_read_digits(side, steps, monkeypatch):
    monkeypatch.setattr(module, "STEPS", steps)
    images, labels = digits(side)
    classifier = trained(images[:NUM_TRAIN], labels[:NUM_TRAIN], 10)

    assert accuracy(classifier, images[NUM_TRAIN:], labels[NUM_TRAIN:]) > 0.9


def test_without_labels_it_learns_how_pictures_are_turned(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 40)
    images, _ = digits(16)
    no_labels = torch.full((len(images),), -1)
    classifier = trained(images[:NUM_TRAIN], no_labels[:NUM_TRAIN], 0)

    assert accuracy(classifier, images[NUM_TRAIN:], no_labels[NUM_TRAIN:]) > 0.5  # chance: 0.25


@pytest.mark.parametrize(("num_classes", "outputs"), [(0, 4), (1, 4), (2, 2), (10, 10)])
def test_less_than_two_classes_tell_nothing_apart_but_turns_do(num_classes, outputs):
    net = untrained(num_classes=num_classes)

    assert net.head.out_features == outputs
    assert (net(pictures(3)).logits is None) == (num_classes < 2)


def test_the_same_seed_gives_the_same_classifier_and_another_another(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 3)
    images, labels = digits(8)
    saved = []
    for seed in (0, 0, 1):
        torch.rand(1)
        saved.append(save_classifier(trained(images, labels, 10, seed)))

    assert saved[0] == saved[1] != saved[2]


def test_torchs_own_generator_is_left_alone(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 1)
    images, labels = digits(8)
    state = torch.get_rng_state()
    load_classifier(save_classifier(trained(images, labels, 10)), "net")

    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_of_threads_changes_no_more_than_rounding(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 3)
    images, labels = digits(8)
    one = trained(images, labels, 10)(images[:50])
    torch.set_num_threads(2)
    two = trained(images, labels, 10)(images[:50])

    torch.testing.assert_close(one.vectors, two.vectors, atol=1e-3, rtol=1e-3)


def test_it_reads_pictures_by_index_a_batch_at_a_time_from_the_whole_set(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 4)
    asked = []

    def read(indices):
        asked.append(indices)
        return pictures(len(indices)), torch.from_numpy(indices % 10)

    train_classifier(read, 10**12, 1, 10)
    indices = np.concatenate(asked)

    assert [len(batch) for batch in asked] == [128] * 4
    assert len(set(indices.tolist())) == len(indices)
    assert 0 <= indices.min() < 0.05e12
    assert 0.95e12 < indices.max() < 1e12


def test_pictures_without_a_label_teach_nothing():
    logits, labels = torch.randn(6, 10), torch.tensor([3, -1, 4, -1, -1, 5])

    torch.testing.assert_close(mean_loss(logits, labels), F.cross_entropy(logits[[0, 2, 5]], labels[[0, 2, 5]]))
    assert mean_loss(logits, torch.full((6,), -1)) == 0


@pytest.mark.parametrize(("side", "channels"), [(1, 1), (4, 3), (8, 1), (28, 1), (32, 3), (96, 3)])
@pytest.mark.parametrize("num", [0, 1, 9])
def test_pictures_of_any_size_have_features_that_do_not_depend_on_the_batch(side, channels, num, monkeypatch):
    net, images = untrained(channels), pictures(num, side, channels)
    vectors, logits = net(images)
    monkeypatch.setattr(module, "PICTURES_AT_A_TIME", 4)
    again = net(images)

    assert vectors.shape == (num, 128)
    assert logits.shape == (num, 10)
    assert vectors.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(again.vectors, vectors, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.logits, logits, atol=1e-5, rtol=1e-5)


def test_larger_pictures_are_averaged_down():
    small = pictures(5, side=32)
    large = small.repeat_interleave(3, 2).repeat_interleave(3, 3)

    torch.testing.assert_close(untrained()(large).vectors, untrained()(small).vectors, atol=1e-5, rtol=1e-5)


def test_a_turn_is_a_quarter():
    x = torch.arange(4 * 9.0).view(4, 1, 3, 3)
    found = turned(x, torch.arange(4))

    assert all(torch.equal(found[i], x[i].rot90(i, (1, 2))) for i in range(4))


def test_shifting_moves_each_picture_by_up_to_an_eighth_of_its_side():
    x = torch.zeros(500, 2, 16, 16)
    x[:, :, 8, 8] = 1
    spots = shifted(x, np.random.default_rng(0)).nonzero()
    moved = {(row - 8, column - 8) for _, _, row, column in spots.tolist()}

    assert len(spots) == 1000
    assert moved == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_accuracy_is_the_share_of_pictures_that_are_told():
    net, images = untrained(), pictures(8)
    told = net(images).logits.argmax(dim=1)
    told[:2] = (told[:2] + 1) % 10

    assert accuracy(net, images, told) == 0.75


@pytest.mark.parametrize("num_classes", [0, 2, 10])
def test_a_saved_classifier_is_loaded_as_it_was(num_classes):
    net, images = untrained(3, num_classes), pictures(5, channels=3)
    loaded = load_classifier(save_classifier(net), "net")

    assert (loaded.channels, loaded.num_classes) == (3, num_classes)
    assert torch.equal(loaded(images).vectors, net(images).vectors)
    assert save_classifier(loaded) == save_classifier(net)


def test_a_file_cut_anywhere_is_refused():
    data = save_classifier(untrained())
    for length in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=r"^net\.safetensors is damaged"):
            load_classifier(data[:length], "net.safetensors")


def of(metadata, **tensors):
    return safetensors.torch.save(untrained().state_dict() | tensors, metadata=metadata)


def said(**changes):
    fields = {"format_version": 1, "channels": 1, "num_classes": 10} | changes
    return {"classifier": str(fields).replace("'", '"')}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (of(None), "net is not a classifier's: KeyError"),
        (of({"classifier": "{"}), "net is not a classifier's: JSONDecodeError"),
        (of({"classifier": "[]"}), "net is not a classifier's: TypeError"),
        (of({"classifier": "{}"}), "net is not a classifier's: KeyError: 'format_version'"),
        (of(said(format_version=2)), "net must be of a classifier's format_version 1, got 2"),
        (of(said(channels=0)), "net is damaged: a classifier of 0 channels and 10 classes"),
        (of(said(num_classes="ten")), "net is damaged: a classifier of 1 channels and ten classes"),
        (of(said(num_classes=9)), r"net is damaged: head.bias should be \(9,\), is \(10,\)"),
        (of(said(), **{"head.bias": torch.full((10,), torch.nan)}), "head.bias must be of finite float32 numbers"),
        (of(said(), **{"head.bias": torch.zeros(10).half()}), "head.bias must be of finite float32 numbers"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_line_that_names_it(data, message):
    with pytest.raises(ValueError, match=message) as refused:
        load_classifier(data, "net")

    assert re.fullmatch("net .*", str(refused.value))


def test_what_cannot_be_learned_from_or_judged_is_refused():
    with pytest.raises(ValueError, match="at least 1 picture to learn from, got 0"):
        trained(pictures(0), torch.zeros(0, dtype=torch.int64), 10)
    with pytest.raises(ValueError, match="at least 1 picture, got 0"):
        accuracy(untrained(), pictures(0), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="pictures of 1 channels, got 3"):
        untrained()(pictures(2, channels=3))
