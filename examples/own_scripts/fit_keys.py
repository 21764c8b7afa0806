"""Fit a line; options as key=value, the way in which Hydra and OmegaConf are called. Hydra itself is not needed here.

python fit_keys.py optimizer.learning_rate=0.1 optimizer.name=momentum
"""

import sys

import hpsearch.trial

POINTS = [(x / 10, 3 * x / 10 + 1) for x in range(-10, 11)]

options = {"optimizer.name": "plain", "optimizer.learning_rate": "0.01", "steps": "20"}
for argument in sys.argv[1:]:
    key, _, value = argument.partition("=")
    if key not in options:
        sys.exit(f"no option {key}")
    options[key] = value

learning_rate = float(options["optimizer.learning_rate"])
momentum = {"plain": 0.0, "momentum": 0.5}[options["optimizer.name"]]
slope = intercept = slope_speed = intercept_speed = 0.0
for step in range(1, int(options["steps"]) + 1):
    errors = [slope * x + intercept - y for x, y in POINTS]
    slope_speed = momentum * slope_speed + sum(e * x for e, (x, _) in zip(errors, POINTS, strict=True)) / 21
    intercept_speed = momentum * intercept_speed + sum(errors) / 21
    slope -= learning_rate * slope_speed
    intercept -= learning_rate * intercept_speed
    hpsearch.trial.report(step, sum(e * e for e in errors) / 21)
