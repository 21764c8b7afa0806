"""Networks by family name: logistic regression, multilayer perceptron, LeNet, or a user's own module."""

from __future__ import annotations

from hpsearch.data.example_shape import ExampleShape
from hpsearch.study.registry import CUSTOM_FAMILY, FAMILIES
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.network import Network


def build_network(model: ModelSettings, example_shape: ExampleShape, num_outputs: int) -> Network:
    """Build the network of the family that the settings name (`study.registry.FAMILIES`).

    Raises:
        InputError: the family does not take such examples: LeNet needs images of at least 16x16 pixels; or a user's own
            module cannot be imported, built or trained in lanes.
    """
    family = FAMILIES.get(model.family, FAMILIES[CUSTOM_FAMILY])
    network: Network = family.implementation(model=model, example_shape=example_shape, num_outputs=num_outputs)
    return network
