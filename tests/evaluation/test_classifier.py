"""The reference classifier on images that are quick to learn, and on scikit-learn's digits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ganray.evaluation import classifier as classifier_module
from ganray.evaluation.classifier import (
    FEATURES,
    Classifier,
    TrainingRecipe,
    mixup_and_noise,
    reference_classifier,
    shift_images,
    shuffled_batches,
)

CPU = torch.device("cpu")
QUICK = TrainingRecipe(min_images=640, epochs=1, batch_size=32)


def squares(count: int, shape=(8, 8, 1), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bright square in one of three places on a noisy background: (images, labels)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) % 3
    for image, label in zip(images, labels, strict=True):
        corner = [shape[0] // 4 * int(label), shape[1] // 4 * int(label)]
        image[corner[0] : corner[0] + shape[0] // 3, corner[1] : corner[1] + shape[1] // 3] += 180
    return images, labels.astype(np.int64)


def train(
    cache: Path, recipe: TrainingRecipe = QUICK, digest: str = "squares", **shape
) -> Classifier:
    return reference_classifier(
        *squares(300, **shape),
        *squares(60, **shape, seed=1),
        data_digest=digest,
        cache=cache,
        device=CPU,
        recipe=recipe,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the module's classifier. Read-only."""
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def classifier(cache: Path) -> Classifier:
    return train(cache)


def test_easy_classes_are_learned_and_progress_is_printed(tmp_path, capsys):
    with torch.no_grad():
        classifier = train(tmp_path)
    assert classifier.accuracy == 1.0
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert "train the reference classifier: 100%  640/640 images" in capsys.readouterr().out


def test_logits_are_the_head_of_the_features(classifier):
    images, labels = squares(50, seed=2)
    features, logits = classifier.features(images), classifier.predict(images)
    assert (features.shape, features.dtype) == ((50, FEATURES), torch.float32)
    assert (logits.shape, logits.dtype) == ((50, 3), torch.float32)
    assert features.min() >= 0
    torch.testing.assert_close(classifier.head(features), logits)
    assert logits.argmax(1).tolist() == labels.tolist()


def test_whitened_features_of_training_images_have_mean_0_and_equal_variances(classifier):
    images, _ = squares(300)
    features = classifier.features(images)
    whitened = classifier.whiten(features).double()
    unit = torch.nn.functional.normalize(features).double()
    torch.testing.assert_close(whitened.mean(0), torch.zeros(FEATURES).double(), atol=1e-3, rtol=0)
    values = torch.linalg.eigvalsh(torch.cov(unit.T))
    expected = (values / (1e-3 * values[-1])).clamp(0, 1)  # the smallest ones are not scaled up
    torch.testing.assert_close(
        torch.cov(whitened.T), torch.diag(expected).double(), atol=1e-3, rtol=0
    )


def test_logits_do_not_depend_on_the_batch(classifier, monkeypatch):
    images, _ = squares(50)
    expected = classifier.predict(images)
    monkeypatch.setattr(classifier_module, "PIXELS_PER_BATCH", 7 * 64)
    torch.testing.assert_close(classifier.predict(images), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(classifier_module, "PIXELS_PER_BATCH", 1)
    single = torch.cat([classifier.predict(images[i : i + 1]) for i in range(50)])
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=1e-5)


def test_no_images_have_no_features(classifier):
    assert classifier.features(np.zeros((0, 8, 8, 1), np.uint8)).shape == (0, FEATURES)
    assert classifier.predict(np.zeros((0, 8, 8, 1), np.uint8)).shape == (0, 3)


def test_arrays_tensors_views_and_read_only_memory_give_equal_logits(classifier):
    images, _ = squares(20)
    expected = classifier.predict(images)
    images.flags.writeable = False
    assert torch.equal(classifier.predict(images), expected)
    assert torch.equal(classifier.predict(torch.tensor(images)), expected)
    assert torch.equal(classifier.predict(images[::-1]).flip(0), expected)


def test_a_cached_classifier_is_not_trained_again(classifier, cache, monkeypatch):
    monkeypatch.setattr(classifier_module, "_train", None)
    cached = train(cache)
    images, _ = squares(20, seed=3)
    assert torch.equal(cached.predict(images), classifier.predict(images))
    assert (cached.hash, cached.accuracy) == (classifier.hash, classifier.accuracy)
    assert [path.name for path in cache.iterdir()] == [f"{classifier.hash}.pt"]


def test_weights_do_not_depend_on_the_global_random_state(classifier, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = train(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in classifier.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_hash_depends_on_the_data_and_every_field_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier_module, "_train", lambda *_: None)
    hashes = {train(tmp_path).hash, train(tmp_path, digest="others").hash}
    hashes.add(train(tmp_path, shape=(9, 8, 1)).hash)
    for field, value in vars(QUICK).items():
        hashes.add(train(tmp_path, replace(QUICK, **{field: type(value)(value + 1)})).hash)
    assert len(hashes) == 3 + len(vars(QUICK))
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in hashes)


def test_the_hash_of_a_recipe_does_not_change(classifier):
    assert classifier.hash == "b924f00c130a246a"


def attributes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return ``squares`` with three attributes: in the first place, in the last, and never."""
    images, labels = squares(count, seed=seed)
    return images, np.stack([labels == 0, labels == 2, labels == 3], 1).astype(np.uint8)


def test_attributes_are_learned_and_cached(tmp_path, monkeypatch):
    def train_attributes() -> Classifier:
        return reference_classifier(
            *attributes(300),
            *attributes(60, seed=1),
            data_digest="squares",
            cache=tmp_path,
            device=CPU,
            recipe=replace(QUICK, min_images=1280),
        )

    trained = train_attributes()
    assert trained.accuracy == 1.0
    assert trained.balanced_accuracy[:2] == (1.0, 1.0)
    assert np.isnan(trained.balanced_accuracy[2])  # no image has it
    logits = trained.predict(attributes(30, seed=2)[0])
    assert ((logits > 0).numpy() == attributes(30)[1]).all()
    monkeypatch.setattr(classifier_module, "_train", None)
    again = train_attributes()
    assert again.hash == trained.hash
    assert again.balanced_accuracy[:2] == trained.balanced_accuracy[:2]
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
    # Noise is not a confident absence of both.
    assert trained.predict(noise)[:, :2].sigmoid().sub(0.5).abs().mean() < 0.2


def test_attributes_are_predicted_for_as_many_held_out_images_as_have_them():
    classifier = Classifier((8, 8, 1), 4, rng_seed=0)
    classifier.head.bias.data.zero_()
    columns = [[-3, -2, -1, -0.5, 2, 3], [-2, -1, 1, 2, 3, 4], [-5, -4, 1, 5, 6, 7], [-1] * 6]
    logits = torch.tensor(columns).float().T
    classifier.predict = lambda _: logits + classifier.head.bias
    labels = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1], [0] * 6]).T
    classifier_module._calibrate(classifier, IMAGES, labels)
    assert (classifier.predict(IMAGES) > 0).sum(0).tolist() == [3, 1, 4, 0]
    assert classifier.head.bias.tolist() == [0.75, -3.5, 0, 0]  # 0: the numbers were right


def test_balanced_accuracy_is_the_mean_accuracy_with_and_without_the_attribute():
    classifier = Classifier((8, 8, 1), 2, rng_seed=0)
    logits = torch.tensor([[1.0, -1.0], [-1.0, -1.0], [1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])
    classifier.predict = lambda _: logits  # predicts 4 of 5 and 1 of 5 images
    labels = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 0], [1, 0]], dtype=torch.uint8)
    classifier_module._measure_accuracy(classifier, IMAGES, labels)
    assert classifier.accuracy == pytest.approx((3 + 4) / 10)
    assert classifier.balanced_accuracy[0] == pytest.approx((3 / 4 + 0 / 1) / 2)
    assert np.isnan(classifier.balanced_accuracy[1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_text("not a checkpoint"),
        lambda path: torch.save({"weights": {}, "accuracy": 1.0}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"weights": print}, path),
    ],
    ids=["empty", "cut", "text", "other weights", "a list", "code"],
)
def test_a_damaged_file_is_replaced_with_a_warning(classifier, tmp_path, capsys, damage):
    path = tmp_path / f"{classifier.hash}.pt"
    classifier_module._save(path, classifier)
    damage(path)
    again = train(tmp_path)
    assert capsys.readouterr().out.startswith(f"WARNING: {path} cannot be read (")
    images, _ = squares(20)
    assert torch.equal(again.predict(images), classifier.predict(images))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert train(tmp_path).hash == classifier.hash
    assert "cannot be read" not in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(8, 8, 3), (28, 28, 1), (9, 70, 3), (64, 64, 3), (218, 178, 3)])
def test_images_of_any_size_are_accepted(shape):
    classifier = Classifier(shape, 5, rng_seed=0).eval()
    assert classifier.predict(np.zeros((2, *shape), np.uint8)).shape == (2, 5)
    assert sum(p.numel() for p in classifier.parameters()) < 1e6


def test_each_epoch_yields_every_row_once():
    rows = torch.cat(list(shuffled_batches(12, 4, 6, torch.Generator().manual_seed(0))))
    assert sorted(rows[:12].tolist()) == sorted(rows[12:].tolist()) == list(range(12))
    assert rows[:12].tolist() != rows[12:].tolist()
    assert [len(batch) for batch in shuffled_batches(5, 2, 4, torch.Generator())] == [2] * 4


def test_a_shift_moves_the_whole_image_by_up_to_a_pixel():
    grid = torch.arange(64.0).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    moved = shift_images(grid, TrainingRecipe(), torch.Generator().manual_seed(0))
    offsets = moved[:, 0, 1:-1, 1:-1] - grid[:, 0, 1:-1, 1:-1]
    assert (offsets == offsets[:, :1, :1]).all()
    assert set(offsets[:, 0, 0].tolist()) == {8.0 * y + x for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_mixed_images_have_mixed_labels_and_noise_has_uniform_ones():
    labels = torch.arange(32) % 4
    y = torch.nn.functional.one_hot(labels, 4).float()
    x = (10.0 * labels).view(32, 1, 1, 1).expand(32, 3, 8, 8).clone()  # flat, at a level each
    new_x, new_y = mixup_and_noise(
        x.clone(),
        y.clone(),
        1 / 4,
        TrainingRecipe(blends=0.25, noise=0.25),
        torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(new_y.sum(1), torch.ones(32))
    means = (new_y * torch.tensor([0.0, 10.0, 20.0, 30.0])).sum(1)
    torch.testing.assert_close(new_x[:8], means[:8].view(8, 1, 1, 1).expand(8, 3, 8, 8))
    assert torch.equal(new_x[8:24], x[8:24])
    assert torch.equal(new_y[8:24], y[8:24])
    assert (new_y[24:] == 0.25).all()
    assert new_x[24:28].std() > 10
    assert 0 <= new_x.min() <= new_x.max() <= 255
    assert torch.equal(new_x[28:], x[28:])  # a flat image is the same in any order


def test_mixup_keeps_attributes_that_agree_and_noise_has_one_half():
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).repeat(4, 1)  # alternately
    recipe = TrainingRecipe(blends=0.125, noise=0.25)
    _, y = mixup_and_noise(
        torch.zeros(8, 1, 8, 8), y, 1 / 2, recipe, torch.Generator().manual_seed(0)
    )
    assert y[0, 0] == 1
    assert 0 < y[0, 1] < 1
    assert y[1:6].tolist() == [[1, 1], [1, 0], [1, 1], [1, 0], [1, 1]]
    assert (y[6:] == 0.5).all()


IMAGES, LABELS = squares(6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": IMAGES / 255}, r"train_images: float64 \(6, 8, 8, 1\); must be uint8"),
        ({"train_images": IMAGES[..., 0]}, r"train_images: uint8 \(6, 8, 8\); .* an axis for the"),
        ({"test_images": IMAGES[:, :7]}, r"test_images: uint8 \(6, 7, 8, 1\); .* at least 8"),
        ({"test_images": np.zeros((6, 8, 8, 2), np.uint8)}, "C 1 or 3"),
        ({"train_labels": LABELS * 0}, "1 classes in the training images .* at least 2"),
        ({"test_labels": LABELS + 1}, "3 classes in the training images and 4 in the test"),
        ({"test_images": IMAGES[:0], "test_labels": LABELS[:0]}, "6 training and 0 test images"),
    ],
)
def test_unusable_sets_are_rejected(tmp_path, changes, message):
    sets = {
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": IMAGES,
        "test_labels": LABELS,
    }
    with pytest.raises(ValueError, match=message) as error:
        reference_classifier(
            **(sets | changes), data_digest="x", cache=tmp_path / "cache", device=CPU
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 9, 8, 1), np.uint8), r"images: \(2, 9, 8, 1\); .* trained on \(n, 8, 8, 1\)"),
        (torch.zeros(2, 8, 8, 1), r"images: float32 \(2, 8, 8, 1\); must be uint8"),
    ],
)
def test_images_of_another_shape_or_dtype_are_an_error(classifier, images, message):
    with pytest.raises(ValueError, match=message):
        classifier.features(images)


def test_digits_are_recognized_and_noise_is_not_confident(tmp_path):
    digits = load_digits()
    images = np.minimum(digits.images * 16, 255).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    classifier = reference_classifier(
        images[:1500],
        labels[:1500],
        images[1500:],
        labels[1500:],
        data_digest="digits",
        cache=tmp_path,
        device=CPU,
        recipe=TrainingRecipe(min_images=5000, batch_size=64),  # 97 to 98 % needs six times as many
    )
    assert classifier.accuracy > 0.9
    noise = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 1), dtype=np.uint8)
    confident = [classifier.predict(x).softmax(1).amax(1) > 0.9 for x in (images, noise)]
    assert confident[0].float().mean() > 0.7
    assert confident[1].float().mean() < 0.05
