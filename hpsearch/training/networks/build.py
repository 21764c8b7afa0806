"""Networks by family name: logistic regression, multilayer perceptron, LeNet, or a user's own module."""

from __future__ import annotations

from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.custom import build_custom_network
from hpsearch.training.networks.dense import Logistic, Mlp
from hpsearch.training.networks.lenet import LeNet
from hpsearch.training.networks.network import Network


def build_network(model: ModelSettings, image_shape: tuple[int, int], num_classes: int) -> Network:
    """Build the network that the settings name.

    Raises:
        InputError: the images are too small for LeNet; a user's own module cannot be imported, built or trained in
            lanes.
    """
    match model.family:
        case "logistic":
            return Logistic(model=model, image_shape=image_shape, num_classes=num_classes)
        case "mlp":
            return Mlp(model=model, image_shape=image_shape, num_classes=num_classes)
        case "cnn":
            return LeNet(model=model, image_shape=image_shape, num_classes=num_classes)
        case _:
            return build_custom_network(model, image_shape, num_classes)
