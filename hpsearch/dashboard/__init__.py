"""optuna-dashboard behind a gate: who may open its pages, and what they may change."""
