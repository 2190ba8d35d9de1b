import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.cluster.connection import one_thread_each
from workflows.config import SampleStage, Workers
from workflows.draw_part import labels_of
from workflows.drawing import MAX_PART_IMAGES, PARTS_AT_LEAST, Part, chosen_labels, parts_of

CLASSES = ["cat", "dog", "emu"]


@given(st.integers(1, 100_000), st.integers(1, 300))
def test_every_image_is_in_exactly_one_part_of_whole_chunks(num, chunk):
    parts = parts_of(num, chunk)

    assert [part.number for part in parts] == list(range(len(parts)))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == num
    assert all((part.stop - part.start) % chunk == 0 for part in parts[:-1])
    assert all(part.stop - part.start <= max(MAX_PART_IMAGES, chunk) for part in parts)
    assert len(parts) >= min(PARTS_AT_LEAST // 2, -(-num // chunk))


@given(st.integers(1, 8), st.floats(0.1, 16))
def test_as_many_cpus_draw_with_a_thread_each(num_workers, cpus):
    spread = one_thread_each(Workers(num_workers=num_workers, cpus_per_worker=cpus))

    assert spread.num_workers * spread.cpus_per_worker == pytest.approx(num_workers * cpus)
    assert spread.cpus_per_worker < 2
    assert spread.num_workers >= num_workers


@pytest.mark.parametrize(
    ("names", "labels"), [((), [0, 1, 2]), (("dog",), [1]), (("2", "cat"), [2, 0]), (("1", "1"), [1, 1])]
)
def test_classes_are_chosen_by_name_or_number(names, labels):
    assert chosen_labels(names, CLASSES) == labels


def test_a_class_that_is_called_by_a_number_is_found_by_its_name():
    assert chosen_labels(("7",), ["7", "8", "9"]) == [0]


def test_a_model_without_classes_has_no_labels():
    assert chosen_labels((), []) == []


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (("eel",), CLASSES, r"labels must be 0 to 2 or names of classes \(cat, dog, emu\), got 'eel'"),
        (("3",), CLASSES, "labels must be 0 to 2 .* got '3'"),
        (("-1",), CLASSES, "labels must be 0 to 2 .* got '-1'"),
        (("1", "2"), [], "labels must not be given for a model without classes, got 1 2"),
    ],
)
def test_a_class_that_the_model_does_not_know_is_refused(names, classes, message):
    with pytest.raises(ValueError, match=message):
        chosen_labels(names, classes)


@given(st.integers(0, 50), st.integers(1, 50))
def test_classes_take_turns_from_the_first_image_of_the_request_on(start, num):
    stage = SampleStage(labels=("emu", "cat"))

    assert labels_of(Part(0, start, start + num), stage, CLASSES) == [
        2 if index % 2 == 0 else 0 for index in range(start, start + num)
    ]
