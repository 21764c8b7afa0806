"""Which networks of a study are checked, what they are called, and which checks there are. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hpsearch.study.corners import model_settings
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.registry import CUSTOM_FAMILY, FAMILIES
from hpsearch.study.settings import ModelSettings, OptionValue, TrialSettings, kernels_text
from hpsearch.wording import parameters_label

MOST_MODELS: Final = 4
# The checks of one network, in the order of their cost, and where each one is: a function of a `CheckedModel`.
MODEL_CHECKS: Final = {
    "untrained loss": "hpsearch.checks.learning:check_untrained",
    "hidden units": "hpsearch.checks.learning:check_units",
    "gradients": "hpsearch.checks.gradients:check_gradients",
    "overfit": "hpsearch.checks.learning:check_overfit",
    "learning rates": "hpsearch.checks.learning_rates:check_learning_rates",
    "shuffled labels": "hpsearch.checks.learning:check_shuffled_labels",
    "cost": "hpsearch.checks.cost:check_cost",
}
OUT_OF_TIME: Final = "out of time: --seconds gives more"


def checked_models(definition: StudyDefinition) -> tuple[list[TrialSettings], list[str]]:
    """The settings whose networks are checked, at most MOST_MODELS, and the names of the other networks.

    If there are more, the first, the last and two between them are taken: the widths that differ most.
    """
    everything = model_settings(definition)
    if len(everything) <= MOST_MODELS:
        return everything, []
    chosen = {round(place * (len(everything) - 1) / (MOST_MODELS - 1)) for place in range(MOST_MODELS)}
    others = [model_name(settings) for place, settings in enumerate(everything) if place not in chosen]
    return [everything[place] for place in sorted(chosen)], others


def model_name(settings: TrialSettings) -> str:
    """The family, and the keys that decide its shape: `mlp (hidden_units 500, activation tanh)`."""
    model = settings.model
    keys: Mapping[str, OptionValue] = dict(model.options)
    if model.family in FAMILIES and model.family != CUSTOM_FAMILY:
        default = ModelSettings.model_fields["initialization"].default
        shown = (k for k in FAMILIES[model.family].keys if k != "initialization" or model.initialization != default)
        keys = {key: kernels_text(getattr(model, key)) for key in shown}
    return f"{model.family} ({parameters_label(keys)})" if keys else model.family
