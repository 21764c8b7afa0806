"""The script of own_script_search.py: a second of waiting in twenty steps, and a loss after each of them.

Appends a line to the file that STARTS names when it starts, so that it is known how often each point was run.
"""

import argparse
import math
import os
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--width", type=int, required=True)
parser.add_argument("--seconds", type=float, default=float(os.environ.get("SECONDS_OF_A_TRIAL", "1")))
args = parser.parse_args()
with Path(os.environ["STARTS"]).open("a") as log:
    log.write(f"{args.lr} {args.width}\n")
for step in range(1, 21):
    time.sleep(args.seconds / 20)
    print(f"step {step} loss {abs(math.log10(args.lr) + 2) + 10 / args.width + 1 / step:.4f}", flush=True)
