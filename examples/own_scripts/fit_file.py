"""Fit a line; options in a JSON file, whose path is the only argument.

python fit_file.py options.json
"""

import json
import sys
from pathlib import Path

import hpsearch.trial

POINTS = [(x / 10, 3 * x / 10 + 1) for x in range(-10, 11)]

options = {"learning_rate": 0.01, "momentum": 0.0, "steps": 20} | json.loads(Path(sys.argv[1]).read_text())
slope = intercept = slope_speed = intercept_speed = 0.0
for step in range(1, options["steps"] + 1):
    errors = [slope * x + intercept - y for x, y in POINTS]
    slope_speed = options["momentum"] * slope_speed + sum(e * x for e, (x, _) in zip(errors, POINTS, strict=True)) / 21
    intercept_speed = options["momentum"] * intercept_speed + sum(errors) / 21
    slope -= options["learning_rate"] * slope_speed
    intercept -= options["learning_rate"] * intercept_speed
    hpsearch.trial.report(step, sum(e * e for e in errors) / 21)
