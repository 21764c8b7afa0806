"""Networks by family name: logistic regression, multilayer perceptron, LeNet, or a user's own module."""

from __future__ import annotations

from hpsearch.study.registry import CUSTOM_FAMILY, FAMILIES
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.network import Network


def build_network(model: ModelSettings, image_shape: tuple[int, int], num_classes: int) -> Network:
    """Build the network of the family that the settings name (`study.registry.FAMILIES`).

    Raises:
        InputError: the images are too small for LeNet; a user's own module cannot be imported, built or trained in
            lanes.
    """
    family = FAMILIES.get(model.family, FAMILIES[CUSTOM_FAMILY])
    network: Network = family.implementation(model=model, image_shape=image_shape, num_classes=num_classes)
    return network
