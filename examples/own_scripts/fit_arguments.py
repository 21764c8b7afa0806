"""Fit a line to a few points by gradient descent; options on the command line, by argparse.

python fit_arguments.py --learning-rate 0.1 --momentum 0.9
"""

import argparse

POINTS = [(x / 10, 3 * x / 10 + 1) for x in range(-10, 11)]

parser = argparse.ArgumentParser()
parser.add_argument("--learning-rate", type=float, default=0.01)
parser.add_argument("--momentum", type=float, default=0.0)
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()

slope = intercept = slope_speed = intercept_speed = 0.0
for step in range(1, args.steps + 1):
    errors = [slope * x + intercept - y for x, y in POINTS]
    slope_speed = args.momentum * slope_speed + sum(e * x for e, (x, _) in zip(errors, POINTS, strict=True)) / 21
    intercept_speed = args.momentum * intercept_speed + sum(errors) / 21
    slope -= args.learning_rate * slope_speed
    intercept -= args.learning_rate * intercept_speed
    print(f"step {step} loss {sum(e * e for e in errors) / 21:.6f}")
