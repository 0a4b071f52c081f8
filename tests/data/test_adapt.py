import pytest
import torch
from torch import nn

from efftrain.data.adapt import adapt
from efftrain.data.digits import ENLARGED_SIZE, DigitsData, Framing, frame
from efftrain.errors import DataError
from efftrain.models.digits import digits_mobilenetv2
from efftrain.models.interface import ModelInterface, declare


def first_batch(data: DigitsData) -> torch.Tensor:
    data.setup()
    return next(iter(data.val_dataloader()))[0]


def test_the_default_model_gets_the_digits_as_they_are():
    plain, adapted = DigitsData(), DigitsData()
    adapt(adapted, digits_mobilenetv2(pretrained=False))
    assert torch.equal(first_batch(plain), first_batch(adapted))
    images = torch.rand(2, 1, 32, 32)
    assert frame(images, Framing()) is images


@pytest.mark.parametrize(
    ("interface", "shape"),
    [
        (ModelInterface(channels=3, image_size=(224, 224)), (3, 224, 224)),
        (ModelInterface(channels=3, image_size=(224, 224), any_image_size=True), (3, 64, 64)),
        (ModelInterface(channels=3, image_size=(28, 28), any_image_size=True), (3, 28, 28)),
        (
            ModelInterface(
                channels=1, image_size=(299, 299), any_image_size=True, min_image_size=75
            ),
            (1, 75, 75),
        ),
        (ModelInterface(channels=2, any_image_size=True), (2, ENLARGED_SIZE, ENLARGED_SIZE)),
        (ModelInterface(), (1, ENLARGED_SIZE, ENLARGED_SIZE)),
    ],
)
def test_digits_are_made_for_the_model(interface, shape):
    model = nn.ReLU()
    declare(model, interface)
    data = DigitsData(batch_size=2)
    adapt(data, model)
    images = first_batch(data)
    assert images.shape == (2, *shape)
    assert all(torch.equal(images[:, 0], images[:, c]) for c in range(shape[0]))


def test_what_is_given_goes_before_what_the_model_says():
    model = nn.ReLU()
    declare(model, ModelInterface(channels=3, image_size=(224, 224)))
    data = DigitsData(batch_size=2, channels=1, image_size=40)
    adapt(data, model)
    assert first_batch(data).shape == (2, 1, 40, 40)


def test_a_model_of_low_precision_gets_images_of_its_own():
    model = digits_mobilenetv2(pretrained=False).to(torch.bfloat16)
    data = DigitsData(batch_size=2)
    adapt(data, model)
    images = first_batch(data)
    assert images.dtype == torch.bfloat16
    model(images)


def test_too_few_scores_and_a_model_of_tokens_are_refused():
    with pytest.raises(DataError, match=r"10 classes, the model gives 7 scores; set model\.num_cl"):
        adapt(DigitsData(), digits_mobilenetv2(pretrained=False, num_classes=7))
    model = nn.ReLU()
    declare(model, ModelInterface(vocab_size=9))
    with pytest.raises(DataError, match="digits gives images, the model takes token ids below 9"):
        adapt(DigitsData(), model)


def test_a_data_module_that_does_not_want_to_know_is_left_alone():
    adapt(object(), nn.ReLU())
