"""optuna-dashboard behind a gate that decides who may open its pages, and what they may change.

HTTP requests come in; those that the rules allow go to optuna-dashboard, with the study database and the artifact store
behind it. All others are answered by the gate.
"""
