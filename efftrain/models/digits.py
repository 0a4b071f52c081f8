"""The model of the default job: a small MobileNetV2 with ReLU6, pretrained on clean digits."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from efftrain.models.weights import load_weights

WEIGHTS = Path(__file__).with_name("digits_mobilenetv2.safetensors")
"""Made by `efftrain train experiment=digits_pretrain`; see conf/experiment/digits_pretrain.yaml."""

BN_MOMENTUM = 0.1
"""torch's default. transformers sets 0.997, TensorFlow's number for the share that is *kept*; in
torch it is the share that is *replaced*, so that the running statistics are the last batch's."""


def digits_mobilenetv2(pretrained: bool | str = True, num_classes: int = 10) -> nn.Module:
    """Build the model.

    Args:
        pretrained: True for the weights in the package, False for random ones, or the path of a
            .safetensors file with a full state dict.
        num_classes: Width of the head. Only 10 fits the weights in the package.

    Returns:
        Takes [N, 1, 32, 32], standardised as `efftrain.data.digits` does; returns an output with
        `logits` [N, num_classes].

    Raises:
        CheckpointError: The file is missing, damaged or of another model.

    Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
    """
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(
        num_channels=1,
        image_size=32,
        hidden_act="relu6",
        depth_multiplier=0.35,
        finegrained_output=True,  # 1,280 features for the head, however narrow the rest is
        output_stride=16,  # a 2 x 2 map is left at the end; at 32 it would be a single pixel
        tf_padding=False,
        classifier_dropout_prob=0.0,
    )
    config.num_labels = num_classes
    model = MobileNetV2ForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BN_MOMENTUM
    if pretrained is not False:
        load_weights(model, WEIGHTS if pretrained is True else Path(pretrained))
    return model
