from __future__ import annotations

import hashlib
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import raylab.data
from raylab._torchvision import import_torchvision
from raylab.data import Batches, DataSet, load
from raylab.data.augment import Stream, crop_and_flip, keyed_generator, random_crop_and_flip
from raylab.errors import ConfigError, DataError

pytestmark = pytest.mark.unit


def images_of(batches: Batches) -> Tensor:
    return torch.cat([x for x, _ in batches])


def labels_of(batches: Batches) -> Tensor:
    return torch.cat([y for _, y in batches])


def same_batches(a: Batches, b: Batches) -> bool:
    return all(
        torch.equal(xa, xb) and torch.equal(ya, yb) for (xa, ya), (xb, yb) in zip(a, b, strict=True)
    )


def arrays(n: int = 40, shape: tuple[int, ...] = (3, 16, 16), classes: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for part, count in (("train", n), ("test", n // 4)):
        made[f"x_{part}"] = rng.integers(0, 256, size=(count, *shape), dtype=np.uint8)
        made[f"y_{part}"] = np.arange(count) % classes
    return made


def write_npz(folder: Path, **changes: Any) -> str:
    content = {**arrays(), **changes}
    path = folder / "data.npz"
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return f"npz:{path}"


# --- the contract, for every source that needs no file

SPECS = ["digits", "random:n=101,shape=3x16x16,classes=7"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("augment", [False, True])
class TestEverySource:
    def test_batches_have_the_shapes_and_types_of_the_contract(
        self, spec: str, augment: bool
    ) -> None:
        data = load(spec, batch_size=16, eval_batch_size=50, augment=augment)
        for split, size in ((data.train, 16), (data.test, 50)):
            assert split.batch_size == size
            assert len(split) == len(list(split)) == -(-split.num_samples // size)
            for x, y in split:
                assert x.shape == (len(y), *data.input_shape)
                assert x.dtype == torch.float32
                assert x.is_contiguous()
                assert y.dtype == torch.int64
                assert 0 <= int(y.min()) <= int(y.max()) < data.num_classes

    def test_the_last_batch_holds_what_remains(self, spec: str, augment: bool) -> None:
        train = load(spec, batch_size=32, augment=augment).train
        sizes = [len(y) for _, y in train]
        assert set(sizes[:-1]) == {32}
        assert sizes[-1] == train.num_samples % 32

    def test_a_second_pass_and_a_second_load_give_the_same_batches(
        self, spec: str, augment: bool
    ) -> None:
        train = load(spec, batch_size=16, seed=3, augment=augment).train
        assert same_batches(train, train)
        assert same_batches(train, load(spec, batch_size=16, seed=3, augment=augment).train)

    def test_any_batch_can_be_made_alone_and_in_any_order(self, spec: str, augment: bool) -> None:
        train = load(spec, batch_size=16, augment=augment).train
        train.set_epoch(2)
        passed = list(train)
        for index in reversed(range(len(train))):
            x, y = train.batch(index)
            assert torch.equal(x, passed[index][0])
            assert torch.equal(y, passed[index][1])

    def test_epochs_and_seeds_differ_in_order_and_agree_in_content(
        self, spec: str, augment: bool
    ) -> None:
        train = load(spec, batch_size=16, augment=augment).train
        first = labels_of(train)
        train.set_epoch(1)
        second = labels_of(train)
        other_seed = labels_of(load(spec, batch_size=16, seed=1, augment=augment).train)
        assert not torch.equal(first, second)
        assert not torch.equal(first, other_seed)
        assert torch.equal(first.sort().values, second.sort().values)
        assert torch.equal(first.sort().values, other_seed.sort().values)
        train.set_epoch(0)
        assert torch.equal(labels_of(train), first)

    def test_the_test_split_knows_no_seed_epoch_or_augmentation(
        self, spec: str, augment: bool
    ) -> None:
        test = load(spec, batch_size=16, seed=5, augment=augment).test
        test.set_epoch(4)
        assert same_batches(test, load(spec, batch_size=16).test)

    def test_pickled_copies_are_small_and_give_the_same_batches(
        self, spec: str, augment: bool
    ) -> None:
        data = load(spec, batch_size=16, augment=augment)
        data.train.set_epoch(6)
        list(data.train)  # the arrays are in use, and still no part of the pickle
        pickled = pickle.dumps(data.train)
        assert len(pickled) < 2000
        copy = pickle.loads(pickled)  # noqa: S301
        assert copy.epoch == 6
        assert same_batches(data.train, copy)
        assert len(pickle.dumps(data)) < 4000

    def test_no_global_generator_is_read_or_moved(self, spec: str, augment: bool) -> None:
        raylab.data.sources.arrays_of.cache_clear()
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        list(load(spec, batch_size=64, augment=augment).train)
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])

    def test_writing_to_a_batch_does_not_change_the_data(self, spec: str, augment: bool) -> None:
        for split in (
            load(spec, batch_size=16, augment=augment).train,
            load(spec, batch_size=9).test,
        ):
            x, y = split.batch(0)
            expected = x.clone(), y.clone()
            x.zero_()
            y.zero_()
            assert torch.equal(split.batch(0)[0], expected[0])
            assert torch.equal(split.batch(0)[1], expected[1])

    def test_training_images_are_normalised_per_channel(self, spec: str, augment: bool) -> None:
        x = images_of(load(spec, batch_size=64).train).to(torch.float64)
        torch.testing.assert_close(
            x.mean(dim=(0, 2, 3)), torch.zeros(x.shape[1], dtype=x.dtype), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            x.std(dim=(0, 2, 3), correction=0), torch.ones(x.shape[1], dtype=x.dtype)
        )


def test_a_pickle_makes_the_same_batch_where_nothing_is_cached() -> None:
    train = load("digits", batch_size=20, seed=1, augment=True).train
    train.set_epoch(3)
    x, y = train.batch(7)
    pickled = pickle.dumps(train)
    raylab.data.sources.arrays_of.cache_clear()
    raylab.data.batches._permutation.cache_clear()
    copied_x, copied_y = pickle.loads(pickled).batch(7)  # noqa: S301
    assert torch.equal(x, copied_x)
    assert torch.equal(y, copied_y)


def test_an_epoch_set_in_the_middle_of_a_pass_counts_from_the_next_pass() -> None:
    train = load("digits", batch_size=200).train
    expected = list(train)
    passing = iter(train)
    next(passing)
    train.set_epoch(1)
    assert torch.equal(next(passing)[1], expected[1][1])
    assert not torch.equal(train.batch(1)[1], expected[1][1])


def test_the_arrays_are_read_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    original = raylab.data.sources.RandomNormal.read

    def counted(source: Any) -> Any:
        reads.append(source)
        return original(source)

    monkeypatch.setattr(raylab.data.sources.RandomNormal, "read", counted)
    for seed in range(3):
        list(load("random:n=30,shape=1x4x4,seed=77", batch_size=8, seed=seed).train)
    assert len(reads) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_gives_the_same_images_rounded(dtype: torch.dtype) -> None:
    x, _ = load("digits", batch_size=50, dtype=dtype).train.batch(0)
    reference, _ = load("digits", batch_size=50).train.batch(0)
    assert x.dtype == dtype
    torch.testing.assert_close(x.to(torch.float32), reference, atol=0, rtol=2**-8)


# --- keys


def test_streams_epochs_and_batches_have_numbers_of_their_own() -> None:
    keys = [
        (stream, seed, epoch, batch)
        for stream in Stream
        for seed in range(2)
        for epoch in range(2)
        for batch in range(2)
    ]
    draws = [tuple(keyed_generator(*key).integers(0, 2**62, size=2)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(keyed_generator(*key).integers(0, 2**62, size=2)) for key in keys]


# --- augmentation


def test_augmentation_changes_images_and_keeps_order_and_labels() -> None:
    plain = load("digits", batch_size=64).train
    augmented = load("digits", batch_size=64, augment=True).train
    assert torch.equal(labels_of(plain), labels_of(augmented))
    assert not torch.equal(images_of(plain), images_of(augmented))


def test_augmentation_differs_between_epochs_batches_and_seeds() -> None:
    images = torch.arange(200 * 64, dtype=torch.float32).reshape(200, 1, 8, 8)
    made = [
        random_crop_and_flip(images, keyed_generator(Stream.AUGMENT, *key), flip=True)
        for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    for i, first in enumerate(made):
        for second in made[i + 1 :]:
            assert not torch.equal(first, second)


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (28, 3), (8, 1), (4, 1)])
def test_a_crop_moves_a_single_pixel_by_up_to_the_padding(size: int, padding: int) -> None:
    images = torch.zeros(4000, 2, size, size, dtype=torch.uint8)
    row, column = size // 2, size // 2 - 1
    images[:, :, row, column] = 200
    moved = random_crop_and_flip(images, keyed_generator(Stream.AUGMENT, 0), flip=False)
    assert moved.dtype == torch.uint8
    place = moved.flatten(2).argmax(dim=2)
    assert torch.equal(place[:, 0], place[:, 1]), "all channels move together"
    assert moved.flatten(2).sum(dim=2).eq(200).all(), "the pixel stays inside and alone"
    rows, columns = place[:, 0] // size - row, place[:, 0] % size - column
    seen = set(zip(rows.tolist(), columns.tolist(), strict=True))
    reach = range(-padding, padding + 1)
    assert seen == {(dy, dx) for dy in reach for dx in reach}


def test_half_of_the_images_are_mirrored_where_that_is_allowed() -> None:
    images = torch.arange(16, dtype=torch.uint8).expand(1000, 1, 16, 16)  # rises left to right
    key = (Stream.AUGMENT, 0)
    kept = random_crop_and_flip(images, keyed_generator(*key), flip=False)
    assert (kept[:, 0, 8, 8] > kept[:, 0, 8, 7]).all()
    made = random_crop_and_flip(images, keyed_generator(*key), flip=True)
    mirrored = made[:, 0, 8, 8] < made[:, 0, 8, 7]
    assert 400 < int(mirrored.sum()) < 600
    assert torch.equal(made[~mirrored], kept[~mirrored]), "flips do not disturb the crops"
    assert torch.equal(made[mirrored], kept[mirrored].flip(3))


def test_crop_and_flip_equals_the_plain_loop_over_images() -> None:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, size=(12, 3, 10, 14), dtype=np.uint8))
    top, left = torch.from_numpy(rng.integers(0, 5, size=(2, 12)))
    mirrored = torch.from_numpy(rng.random(12) < 0.5)
    made = crop_and_flip(images, 2, top=top, left=left, mirrored=mirrored)
    for n in range(12):
        padded = torch.nn.functional.pad(images[n], (2, 2, 2, 2))
        window = padded[:, top[n] : top[n] + 10, left[n] : left[n] + 14]
        assert torch.equal(made[n], window.flip(2) if mirrored[n] else window)


@pytest.mark.parametrize(("shape", "flips"), [((3, 8, 8), True), ((1, 8, 8), False)])
def test_colour_files_are_mirrored_and_grey_ones_are_not(
    tmp_path: Path, shape: tuple[int, ...], flips: bool
) -> None:
    rising = np.broadcast_to(np.arange(8, dtype=np.uint8) * 10, (200, *shape))
    spec = write_npz(tmp_path, x_train=rising, y_train=np.zeros(200, int), x_test=rising[:10])
    x, _ = load(spec, batch_size=200, augment=True).train.batch(0)
    falling = x[:, 0, 4, 4] < x[:, 0, 4, 3]
    assert bool(falling.any()) == flips


# --- held out


def lines(batches: Batches) -> list[list[float]]:
    """Return every sample, its label last, in an order that does not depend on that of batches."""
    arrays = raylab.data.sources.arrays_of(batches.source)
    split = arrays.split(batches.split)
    return sorted(torch.column_stack([split.images.flatten(1), split.labels]).tolist())


@pytest.mark.parametrize("spec", SPECS)
def test_held_out_samples_are_training_samples_that_are_not_trained_with(spec: str) -> None:
    whole = load(spec, batch_size=16)
    held = load(spec, batch_size=16, validation=0.25, seed=3)
    assert held.name == whole.name
    assert held.test.num_samples == round(0.25 * whole.train.num_samples)
    assert sorted(lines(held.train) + lines(held.test)) == lines(whole.train)
    drawn, of = labels_of(held.test).bincount(), labels_of(whole.train).bincount()
    assert ((drawn - 0.25 * of).abs() < 1).all()


def test_the_same_samples_are_held_out_whatever_the_seed_and_normalised_by_the_others() -> None:
    first, second = (load("digits", batch_size=64, validation=0.2, seed=seed) for seed in (0, 1))
    assert same_batches(first.test, second.test)
    x = images_of(first.train)
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="`0 <= validation < 1`"):
        load("digits", batch_size=8, validation=share)


def test_both_parts_keep_a_sample() -> None:
    with pytest.raises(DataError, match=r"some of the 4 training samples, but 0\.05 of them is 0"):
        load("random:n=4", batch_size=4, validation=0.05)


# --- digits


def test_digits_are_split_into_1437_and_360_with_every_class_in_proportion() -> None:
    data = load("digits", batch_size=360)
    assert data.name == "digits"
    assert (data.train.num_samples, data.test.num_samples) == (1437, 360)
    assert (data.num_classes, data.input_shape) == (10, (1, 8, 8))
    train, test = labels_of(data.train).bincount(), labels_of(data.test).bincount()
    assert ((test - (train + test) * 360 / 1797).abs() < 1).all()


def test_digits_are_each_in_one_split_and_keep_their_pixels() -> None:
    from sklearn.datasets import load_digits

    data = load("digits", batch_size=360)
    images = torch.cat([images_of(data.train), images_of(data.test)]).flatten(1)
    labels = torch.cat([labels_of(data.train), labels_of(data.test)])
    arrays = raylab.data.sources.arrays_of(data.train.source)
    pixels = (images * arrays.std.item() + arrays.mean.item()).round().to(torch.int64) // 15
    original, classes = load_digits(return_X_y=True)
    expected = sorted(np.column_stack([original, classes]).astype(int).tolist())
    assert sorted(torch.column_stack([pixels, labels]).tolist()) == expected


def test_the_split_of_digits_does_not_change_between_versions() -> None:
    test = labels_of(load("digits", batch_size=360).test)
    digest = hashlib.sha256(test.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("ff86138867e1415c")


def test_digits_are_enlarged_bilinearly_and_normalised_after_that() -> None:
    data = load("digits", batch_size=1437, image_size=32)
    assert data.input_shape == (1, 32, 32)
    x = images_of(data.train)
    assert abs(float(x.mean())) < 1e-4
    assert abs(float(x.std()) - 1) < 1e-3

    small = raylab.data.sources.arrays_of(load("digits", batch_size=1).train.source).test
    large = raylab.data.sources.arrays_of(data.train.source).test
    enlarged = torch.nn.functional.interpolate(small.images.float(), size=(32, 32), mode="bilinear")
    assert float((large.images - enlarged).abs().max()) <= 0.5, "rounded to whole grey levels"


# --- files


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((9, 7), (1, 9, 7)),
        ((1, 9, 7), (1, 9, 7)),
        ((3, 9, 7), (3, 9, 7)),
        ((4, 9, 7), (4, 9, 7)),
        ((9, 7, 1), (1, 9, 7)),
        ((9, 7, 3), (3, 9, 7)),
        ((3, 9, 3), (3, 9, 3)),
    ],
)
def test_a_file_may_have_its_channels_first_last_or_not_at_all(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    content = arrays(shape=shape)
    data = load(write_npz(tmp_path, **content), batch_size=40)
    assert data.input_shape == expected
    assert data.num_classes == 4
    assert (data.train.num_samples, data.test.num_samples) == (40, 10)

    raw = torch.from_numpy(content["x_test"])
    if shape[-1] in (1, 3) and shape[0] == 9:
        raw = raw.permute(0, 3, 1, 2)
    loaded = raylab.data.sources.arrays_of(data.test.source)
    restored = images_of(data.test) * loaded.std + loaded.mean
    torch.testing.assert_close(restored, raw.reshape(10, *expected).to(torch.float32))
    assert torch.equal(labels_of(data.test), torch.from_numpy(content["y_test"]))

    x = images_of(data.train).to(torch.float64)
    assert float(x.mean(dim=(0, 2, 3)).abs().max()) < 1e-6
    assert float((x.std(dim=(0, 2, 3), correction=0) - 1).abs().max()) < 1e-6


def test_a_constant_channel_becomes_zero(tmp_path: Path) -> None:
    content = arrays()
    content["x_train"][:, 1] = 17
    x = images_of(load(write_npz(tmp_path, **content), batch_size=16).train)
    assert torch.isfinite(x).all()
    assert (x[:, 1] == 0).all()


def test_a_file_is_resized_when_that_is_asked_for(tmp_path: Path) -> None:
    spec = write_npz(tmp_path, **arrays(shape=(3, 20, 12)))
    assert load(spec, batch_size=8, image_size=10).input_shape == (3, 10, 10)


def test_labels_may_be_a_column_of_any_integer_type(tmp_path: Path) -> None:
    spec = write_npz(tmp_path, y_train=(np.arange(40, dtype=np.uint8) % 4)[:, None])
    assert labels_of(load(spec, batch_size=16).train).bincount().tolist() == [10] * 4


def test_a_relative_path_is_kept_as_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_npz(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load("npz:data.npz", batch_size=4).name == spec


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    spec = write_npz(tmp_path)
    assert load(spec, batch_size=4).num_classes == 4
    write_npz(tmp_path, **arrays(classes=6))
    os.utime(tmp_path / "data.npz", ns=(1, 1))
    assert load(spec, batch_size=4).num_classes == 6


def test_a_process_with_another_file_says_so(tmp_path: Path) -> None:
    train = load(write_npz(tmp_path), batch_size=4).train
    write_npz(tmp_path, **arrays(n=60))
    raylab.data.sources.arrays_of.cache_clear()  # as in a worker on another node
    with pytest.raises(DataError, match="has 60 samples here and had 40 where it was loaded"):
        train.batch(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "y_test is missing; it has x_train, y_train, x_test"),
        ({"x_train": np.zeros((40, 3, 8, 8))}, "must be uint8, 0 to 255, but x_train .* float64"),
        ({"x_test": np.zeros((10, 8), np.uint8)}, r"x_test .* has \(10, 8\)"),
        ({"x_test": np.zeros((10, 3, 8, 8), np.uint8)}, r"\(3, 16, 16\) and \(3, 8, 8\)"),
        ({"y_train": np.zeros(39, int)}, "train split has 40 images and 39 labels"),
        ({"y_train": np.zeros(40)}, "labels must be integers, but y_train .* float64"),
        ({"y_test": np.eye(10, dtype=int)}, r"y_test .* has \(10, 10\); one-hot"),
        ({"y_test": np.full(10, -1)}, r"labels must lie in \[0, 4\).* from -1 to -1"),
        (
            {"x_test": np.zeros((0, 3, 16, 16), np.uint8), "y_test": np.zeros(0, int)},
            r"at least one image .* the test split have shape \(0, 3, 16, 16\)",
        ),
        ({"y_train": np.array([None] * 40)}, "plain arrays, but numpy could not read it"),
    ],
)
def test_an_unfit_array_is_named_with_its_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    spec = write_npz(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(spec, batch_size=4)
    assert str(tmp_path / "data.npz") in str(caught.value)


def test_a_missing_file_is_named_with_the_way_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none at .*no\.npz; write one with numpy\.savez"):
        load(f"npz:{tmp_path}/no.npz", batch_size=4)


def test_what_is_no_npz_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_text("not an archive")
    with pytest.raises(DataError, match=r"must be an \.npz file of plain arrays"):
        load(f"npz:{path}", batch_size=4)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"must be an \.npz file of plain arrays"):
        load(f"npz:{path}", batch_size=4)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="holds a single array"):
        load(f"npz:{path}", batch_size=4)
    with pytest.raises(DataError, match=r"must be an \.npz file of plain arrays"):
        load(f"npz:{tmp_path}", batch_size=4)
    np.savez_compressed(path, **arrays())
    damaged = bytearray(path.read_bytes())
    damaged[200:400] = b"\xff" * 200
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"must be an \.npz file of plain arrays"):
        load(f"npz:{path}", batch_size=4)


# --- random


def test_random_data_follow_their_spec() -> None:
    data = load("random:n=12,shape=2x5x6,classes=3,seed=1", batch_size=5)
    assert data.name == "random:n=12,shape=2x5x6,classes=3,seed=1"
    assert (data.train.num_samples, data.test.num_samples) == (12, 2)
    assert (data.input_shape, data.num_classes) == ((2, 5, 6), 3)
    assert load("random:n=1", batch_size=1).test.num_samples == 1
    assert load("random", batch_size=1).name == "random:n=1000,shape=3x32x32,classes=10,seed=0"


def test_random_samples_depend_on_their_own_seed_only() -> None:
    def images(seed: int, run_seed: int) -> Tensor:
        return images_of(load(f"random:n=20,seed={seed}", batch_size=4, seed=run_seed).test)

    assert torch.equal(images(0, 0), images(0, 1))
    assert not torch.equal(images(0, 0), images(1, 0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("random:n=0", r"`n of random:n=0` must be a whole number in \[1, "),
        ("random:classes=0", "`classes of"),
        ("random:shape=3x0x32", "`shape of"),
        ("random:shape=3x32", "with shape=CxHxW, but .* has 'shape=3x32'"),
        ("random:n=many", "with n=a whole number, but .* has 'n=many'"),
        ("random:n=-5", "with n=a whole number"),
        ("random:n", "with n=a whole number"),
        ("random:n=1,n=2", "gives n twice"),
        ("random:m=10", "has the unknown part 'm=10'"),
        ("random:seed=4294967296", "`seed of"),
    ],
)
def test_a_malformed_random_spec_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spec, batch_size=4)


def test_random_images_are_not_resized() -> None:
    assert load("random:n=4", batch_size=4, image_size=32).input_shape == (3, 32, 32)
    with pytest.raises(ConfigError, match=r"image_size=16 .* write shape=3x16x16"):
        load("random:n=4", batch_size=4, image_size=16)


# --- arguments


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"one of digits, mnist, .*npz:PATH, random:.* but got 'digit'; .* mean digits\?"),
        ("CIFAR-10", r"did you mean cifar10\?"),
        ("nzp:a.npz", r"did you mean npz:PATH\?"),
        ("", "must be one of .* but got ''$"),
        ("elephants", "but got 'elephants'$"),
        ("digits:8", "takes nothing after its name, but got 'digits:8'"),
        ("npz:", "the path is empty"),
    ],
)
def test_an_unknown_spec_is_answered_with_the_known_forms(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spec, batch_size=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"`batch_size` must be a whole number in \[1, .* but got 0"),
        ({"batch_size": True}, "`batch_size` .* got True"),
        ({"batch_size": 2.0}, r"`batch_size` .* got 2\.0"),
        ({"eval_batch_size": 0}, "`eval_batch_size`"),
        ({"seed": -1}, r"`seed` must be a whole number in \[0, .* but got -1"),
        ({"seed": 2**32}, "`seed`"),
        ({"image_size": 0}, "`image_size`"),
        ({"dtype": torch.int32}, r"`dtype` must be one of .* but got torch\.int32"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("digits", **{"batch_size": 4, **arguments})


def test_an_index_or_epoch_out_of_range_is_refused() -> None:
    train = load("digits", batch_size=1000).train
    for index in (-1, 2):
        with pytest.raises(DataError, match=f"`0 <= index < 2` .* index={index}"):
            train.batch(index)
    with pytest.raises(DataError, match="epoch=-1"):
        train.set_epoch(-1)


# --- torchvision's sets, from small files in the formats that torchvision reads


def write_idx(path: Path, content: np.ndarray[Any, Any]) -> None:
    magic = 0x0800 + content.ndim
    path.write_bytes(
        struct.pack(f">{content.ndim + 1}i", magic, *content.shape) + content.tobytes()
    )


def write_mnist(root: Path) -> dict[str, Any]:
    content = arrays(shape=(28, 28), classes=10)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, name in (("train", "train"), ("test", "t10k")):
        write_idx(raw / f"{name}-images-idx3-ubyte", content[f"x_{part}"])
        write_idx(raw / f"{name}-labels-idx1-ubyte", content[f"y_{part}"].astype(np.uint8))
    return content


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write two training batches and one test batch, with their own sums in torchvision's lists."""
    import_torchvision()
    from torchvision import datasets

    ten = name == "cifar10"
    made_by = datasets.CIFAR10 if ten else datasets.CIFAR100
    folder = root / made_by.base_folder
    folder.mkdir(parents=True)

    def write(file: str, content: dict[str, Any]) -> list[str]:
        pickled = pickle.dumps(content, protocol=2)
        (folder / file).write_bytes(pickled)
        return [file, hashlib.md5(pickled).hexdigest()]  # noqa: S324

    content = arrays(shape=(3, 32, 32), classes=10 if ten else 40)
    key = "labels" if ten else "fine_labels"

    def rows(part: str, chosen: slice) -> dict[str, Any]:
        x, y = content[f"x_{part}"][chosen], content[f"y_{part}"][chosen]
        return {"data": x.reshape(len(x), 3072), key: y.tolist()}

    train = [write("one", rows("train", slice(0, 25))), write("two", rows("train", slice(25, 40)))]
    monkeypatch.setattr(made_by, "train_list", train)
    monkeypatch.setattr(made_by, "test_list", [write("test", rows("test", slice(None)))])
    meta = dict(made_by.meta)
    names = [str(i) for i in range(10 if ten else 100)]
    meta["filename"], meta["md5"] = write("meta", {meta["key"]: names})
    monkeypatch.setattr(made_by, "meta", meta)
    return content


def assert_holds(data: DataSet, content: dict[str, Any]) -> None:
    loaded = raylab.data.sources.arrays_of(data.test.source)
    for part in ("train", "test"):
        split = loaded.split(part)
        raw = torch.from_numpy(content[f"x_{part}"]).reshape(-1, *data.input_shape)
        assert torch.equal(split.images, raw)
        assert split.labels.tolist() == content[f"y_{part}"].tolist()
    restored = images_of(data.test) * loaded.std + loaded.mean
    torch.testing.assert_close(restored, loaded.test.images.to(torch.float32))


def test_mnist_is_read_from_its_raw_files(tmp_path: Path) -> None:
    content = write_mnist(tmp_path)
    data = load("mnist", batch_size=16, root=str(tmp_path), augment=True)
    assert (data.name, data.num_classes, data.input_shape) == ("mnist", 10, (1, 28, 28))
    assert_holds(data, content)
    assert not raylab.data.sources.arrays_of(data.train.source).flip
    assert len(pickle.dumps(data.train)) < 2000
    assert load("mnist", batch_size=16, root=str(tmp_path), image_size=32).input_shape == (
        1,
        32,
        32,
    )


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_its_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int
) -> None:
    content = write_cifar(tmp_path, name, monkeypatch)
    data = load(name, batch_size=16, root=str(tmp_path), augment=True)
    assert (data.name, data.num_classes, data.input_shape) == (name, classes, (3, 32, 32))
    assert_holds(data, content)
    assert raylab.data.sources.arrays_of(data.train.source).flip
    assert same_batches(data.train, pickle.loads(pickle.dumps(data.train)))  # noqa: S301


def test_files_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    content = write_mnist(tmp_path)
    assert_holds(load("mnist", batch_size=16, root=str(tmp_path), download=True), content)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
    ],
)
def test_a_missing_folder_is_named_with_two_ways_out(
    tmp_path: Path, name: str, folder: str
) -> None:
    with pytest.raises(DataError, match=r"pass download=true .* or data_root=PATH") as caught:
        load(name, batch_size=4, root=str(tmp_path))
    assert f"must be in {tmp_path / folder}, but" in str(caught.value)


def test_the_default_root_is_in_the_cache_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load("mnist", batch_size=4)
    assert str(tmp_path / ".cache/raylab/data/MNIST/raw") in str(caught.value)


def test_an_incomplete_or_damaged_folder_is_an_error_of_the_data(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match="must be complete and readable"):
        load("mnist", batch_size=4, root=str(tmp_path))
    file.unlink()
    with pytest.raises(DataError, match="Dataset not found"):
        load("mnist", batch_size=4, root=str(tmp_path))


def test_a_download_that_fails_is_an_error_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_torchvision()
    from torchvision import datasets

    def fail(_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError, match="no route to host"):
        load("cifar10", batch_size=4, root=str(tmp_path / "new"), download=True)
    with pytest.raises(DataError, match="there is no such folder"):
        load("cifar10", batch_size=4, root=str(tmp_path / "new"))


# --- the package


def test_the_package_exports_what_it_says() -> None:
    names = ["Batches", "DataSet", "RowBlock", "RowSource", "load", "open_rows"]
    assert raylab.data.__all__ == names
    assert all(hasattr(raylab.data, name) for name in raylab.data.__all__)
