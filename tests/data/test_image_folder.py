import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efftrain.data.image_folder import ImageFolderData
from efftrain.data.picture import Framing, read_picture
from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
MODEL = ModelInterface(
    num_classes=3, channels=3, image_size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3
)


def paint(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    for name, colour in COLOURS.items():
        for number in range(5):
            paint(tmp_path / "photos" / name / f"{number}.png", colour)
    return tmp_path / "photos"


def load(data: ImageFolderData, interface: ModelInterface = MODEL) -> ImageFolderData:
    data.adapt_to(interface)
    data.setup()
    return data


def files(data: ImageFolderData) -> list[set[str]]:
    loaders = (data.train_dataloader(), data.val_dataloader())
    return [{str(path) for path, _ in loader.dataset.paths} for loader in loaders]


def test_colours_come_out_as_standardised_pixels_with_their_classs_number(root):
    data = load(ImageFolderData(str(root), num_workers=0))
    assert data.classes == ["blue", "green", "red"]
    for images, labels in data.train_dataloader():
        assert images.shape[1:] == (3, 8, 8)
        for image, label in zip(images, labels, strict=True):
            # a channel is 0 or 1, and (x - 0.5) / 0.5 makes it -1 or 1; blue is the last channel
            bright = {0: 2, 1: 1, 2: 0}[int(label)]
            expected = torch.full((3, 8, 8), -1.0)
            expected[bright] = 1.0
            assert torch.allclose(image, expected)


def test_the_split_is_by_class_disjoint_complete_and_always_the_same(root):
    torch.manual_seed(1)
    train, held_out = files(load(ImageFolderData(str(root), held_out=0.4)))
    torch.manual_seed(2)
    assert files(load(ImageFolderData(str(root), held_out=0.4))) == [train, held_out]
    assert not train & held_out
    assert len(train | held_out) == 15
    assert sorted(Path(path).parent.name for path in held_out) == [
        name for name in COLOURS for _ in range(2)
    ]


def test_folders_train_and_val_are_the_split(tmp_path):
    for part, names in (("train", ("cat", "dog")), ("val", ("dog",))):
        for name in names:
            paint(tmp_path / part / name / "x.PNG", (1, 2, 3))
    data = load(ImageFolderData(str(tmp_path), num_workers=0))
    assert [label for _, label in data.val_dataloader().dataset.paths] == [1]
    paint(tmp_path / "val" / "emu" / "x.png", (1, 2, 3))
    with pytest.raises(DataError, match="has the class 'emu', train has not"):
        load(ImageFolderData(str(tmp_path)))


def test_hidden_files_and_texts_are_passed_over(root):
    (root / "red" / "._0.png").write_bytes(b"x")
    (root / "red" / "notes.txt").write_text("x")
    (root / ".cache").mkdir()
    assert len(set.union(*files(load(ImageFolderData(str(root)))))) == 15


@pytest.mark.parametrize(
    ("interface", "arguments", "shape"),
    [
        (ModelInterface(channels=1, image_size=(6, 4)), {}, (1, 6, 4)),
        (
            ModelInterface(channels=4, image_size=(6, 6)),
            {"mean": [0] * 4, "std": [1] * 4},
            (4, 6, 6),
        ),
        (
            ModelInterface(channels=3, image_size=(6, 6)),
            {"image_size": 5, "channels": 1},
            (1, 5, 5),
        ),
        (ModelInterface(), {"image_size": 5}, (3, 5, 5)),
    ],
)
def test_channels_and_size_are_the_models_unless_given(root, interface, arguments, shape):
    data = load(ImageFolderData(str(root), num_workers=0, **arguments), interface)
    images, _ = next(iter(data.val_dataloader()))
    assert images.shape[1:] == shape


def test_a_model_of_low_precision_gets_images_of_its_own(root):
    interface = ModelInterface(channels=3, image_size=(4, 4), dtype=torch.bfloat16)
    images, _ = next(iter(load(ImageFolderData(str(root)), interface).val_dataloader()))
    assert images.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (lambda root: root.rename(root.with_name("gone")), {}, "data.root: no folder"),
        (lambda root: [f.unlink() for f in (root / "red").iterdir()], {}, "no images in"),
        (lambda root: (root / "zebra").mkdir(), {}, "no images in"),
        (lambda root: paint(root / "zebra" / "0.png", (0, 0, 0)), {}, "set model.num_classes=4"),
        (lambda root: None, {"mean": [0.5, 0.5]}, "data.mean: 2 values for 3 channels"),
        (lambda root: None, {"channels": 2}, "data.channels: images have 1, 3 or 4"),
    ],
)
def test_a_wrong_folder_is_one_line(root, prepare, arguments, message):
    prepare(root)
    with pytest.raises(DataError, match=r"^data") as caught:
        load(ImageFolderData(str(root), **arguments))
    assert message in str(caught.value)


def test_a_folder_without_folders_or_with_one_image_a_class_is_refused(tmp_path):
    paint(tmp_path / "x.png", (0, 0, 0))
    with pytest.raises(DataError, match="has no folders; there has to be one for each class"):
        load(ImageFolderData(str(tmp_path)))
    paint(tmp_path / "a" / "x.png", (0, 0, 0))
    with pytest.raises(DataError, match="one image a class, none to evaluate on"):
        load(ImageFolderData(str(tmp_path)))


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of newer Pythons, about workers
def test_a_damaged_image_is_named_in_one_line(root, spoil):
    for path in (root / "red").iterdir():
        noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(spoil(path.read_bytes()))
    for workers in (0, 1):
        data = load(ImageFolderData(str(root), num_workers=workers))
        with pytest.raises(DataError, match=r"^data\.root: .*red/\d\.png is damaged") as caught:
            list(data.train_dataloader())
        assert len(str(caught.value).splitlines()) == 1


def test_a_model_of_tokens_is_refused():
    with pytest.raises(DataError, match="gives images, the model takes token ids below 9"):
        ImageFolderData("x").adapt_to(ModelInterface(vocab_size=9))


def frame(size: tuple[int, int], channels: int = 3) -> Framing:
    return Framing(size, channels, torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1))


def test_the_crop_is_in_the_middle_and_keeps_the_shape(tmp_path):
    # brightness is the column, so that a pixel says where it was: 80 x 40, of which 0.875 x 40 = 35
    # are kept each way, from 22.5 to 57.5; a pixel's colour is that of its centre, half a pixel in
    ramp = np.tile(np.arange(80, dtype=np.uint8), (40, 1))
    Image.fromarray(ramp).save(tmp_path / "x.png")
    image = read_picture(tmp_path / "x.png", frame((35, 35), channels=1), augment=False)
    assert 255 * image[0, 0, [0, 17, 34]] == pytest.approx([22.5, 39.5, 56.5], abs=0.51)
    # twice as wide as high: the whole shape fits, of which 70 x 35 are kept, from 5 to 75
    wide = read_picture(tmp_path / "x.png", frame((35, 70), channels=1), augment=False)
    assert 255 * wide[0, 0, [0, 35, 69]] == pytest.approx([5, 40, 74], abs=0.51)


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:4] = 255  # the upper half is bright
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    image = read_picture(tmp_path / "x.png", frame((8, 8), channels=1), augment=False)
    assert image[0, 0].mean() < 0.1
    assert image[0, -1].mean() > 0.9


def test_augmented_images_differ_stay_inside_and_are_mirrored_half_of_the_time(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))  # brighter to the right
    Image.fromarray(ramp).save(tmp_path / "x.png")
    torch.manual_seed(0)
    images = torch.stack(
        [read_picture(tmp_path / "x.png", frame((8, 8), 1), augment=True)[0] for _ in range(200)]
    )
    slopes = images[:, :, -1].mean(1) - images[:, :, 0].mean(1)
    mirrored = (slopes < 0).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 200))
    # at most the whole width, where the ramp rises by 252 / 255 less half a pixel at each end; at
    # least a crop of 35 % of the area, stretched 4 : 3 upright
    least = math.sqrt(0.35 * 64 * 48 / (4 / 3)) / 64
    assert slopes.abs().max() < 0.99
    assert slopes.abs().min() > 0.8 * least
    assert len({round(slope, 4) for slope in slopes.tolist()}) > 100
