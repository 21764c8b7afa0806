#!/bin/sh
# A trial without Python: options are environment variables, and each report is a line of JSON to a pipe.
rest=$START
step=1
while [ "$step" -le 10 ]; do
    rest=$((rest / HPSEARCH_PARAM_DIVISOR))
    echo "{\"step\": $step, \"value\": $((rest + HPSEARCH_PARAM_OFFSET))}" > "$HPSEARCH_REPORTS"
    step=$((step + 1))
done
