"""The plots of a report, each with a caption. If there is nothing to plot, the caption says why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import accumulate

import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from hpsearch.metric import Metric, Task
from hpsearch.results.report.plot_style import (
    BEST,
    COMPLETE,
    PRUNED,
    RUNNING,
    Plot,
    counting_axis,
    number_axis,
    plot_text,
    point_text,
    scatter,
    styled,
    value_axis,
)
from hpsearch.results.status import StudyStatus
from hpsearch.results.summary import StudySummary
from hpsearch.results.trial_summary import EpochRecord, TrialSummary
from hpsearch.search.snapshot import StudySnapshot
from hpsearch.store.rows.trial_state import StoredState
from hpsearch.study.space import ZERO_SUFFIX

MAX_CURVES = 300  # more lines cannot be told apart, and are slow to draw
_MANY_CURVES = 60  # above this number curves are fainter, so that the best ones stay visible
_NUM_HIGHLIGHTED = 5


def search_history(status: StudyStatus) -> Plot:
    """The value of every complete trial, and the best value so far, by trial number."""
    complete, metric = sorted(status.summary.complete, key=lambda trial: trial.number), status.summary.metric
    numbers = [trial.number for trial in complete]
    values = [metric.shown(trial.value) for trial in complete if trial.value is not None]
    places, hover = zip(numbers, values, strict=True), "trial %{x}: %{y" + metric.hover
    trials = scatter("trial", places, hover, marker={"color": COMPLETE, "size": 7})
    best_so_far = zip(numbers, accumulate(values, min if metric.sign > 0 else max), strict=True)
    line = {"color": BEST, "width": 2, "shape": "hv"}
    best = scatter("best so far", best_so_far, "best of trials 0 to %{x}: %{y" + metric.hover, mode="lines", line=line)
    last = len(status.summary.trials) - 1
    figure = styled(go.Figure([trials, best]), xaxis=counting_axis("trial", 0, last), yaxis=value_axis(metric, values))
    caption = f"The {metric.best_word} {metric.validation_label} of each complete trial, by trial number."
    return Plot(caption=caption, figure=figure)


def learning_curves(status: StudyStatus) -> Plot:
    """The validation error of every counted or running trial after each epoch; the best trials are highlighted."""
    trials = [t for t in status.summary.trials if t.curve and t.is_listed and t.stored_state is not StoredState.FAIL]
    shown, metric = trials[:MAX_CURVES], status.summary.metric
    highlighted = [trial for trial in shown if trial.is_complete][:_NUM_HIGHLIGHTED]
    background = [trial for trial in shown if trial not in highlighted]
    groups: set[str] = set()
    # The best trials are drawn last, on top of all others.
    figure = go.Figure([_curve(trial, highlighted, groups, metric) for trial in background + highlighted[::-1]])
    if len(background) > _MANY_CURVES:
        figure.update_traces(opacity=0.15, selector={"name": "complete"})
    values = [metric.shown(record.value) for trial in shown for record in trial.curve]
    num_epochs = max(record.epoch for trial in shown for record in trial.curve)
    styled(figure, height=480, xaxis=counting_axis(metric.step, 1, num_epochs), yaxis=value_axis(metric, values))
    what = f"The {metric.best_word} {metric.validation_label} within each epoch"
    if metric.is_reported:
        what = f"The {metric.label} that each trial reported after its steps"
    caption = f"{what}; point at a curve for its parameters."
    if len(shown) < len(trials):
        caption += f" Only the first {len(shown):,} of {len(trials):,} trials are drawn, the best ones first."
    return Plot(caption=caption, figure=figure)


def _curve(trial: TrialSummary, highlighted: Sequence[TrialSummary], groups: set[str], metric: Metric) -> go.Scatter:
    group, line, opacity = _curve_style(trial, highlighted)
    is_first = group not in groups
    groups.add(group)
    return scatter(
        group,
        [(record.epoch, metric.shown(record.value)) for record in trial.curve],
        f"trial {trial.number}, {metric.step} %{{x}}: %{{y{metric.hover}<br>%{{meta}}",
        legendgroup=group,
        showlegend=is_first,
        mode=_mode(trial.curve),
        line=line,
        marker={"color": line["color"]},
        opacity=opacity,
        meta=point_text(trial.point_parameters),
    )


def _mode(curve: Sequence[EpochRecord]) -> str:
    """How a curve is drawn: a line with one point would be invisible."""
    return "lines" if len(curve) > 1 else "markers"


def _curve_style(trial: TrialSummary, highlighted: Sequence[TrialSummary]) -> tuple[str, dict[str, str | float], float]:
    """Legend group, line and opacity."""
    if highlighted and trial is highlighted[0]:
        return f"best: trial {trial.number}", {"color": BEST, "width": 3}, 1.0
    if trial in highlighted:
        return f"next {len(highlighted) - 1}", {"color": COMPLETE, "width": 2.2}, 1.0
    if trial.stored_state is StoredState.RUNNING:
        return "in training", {"color": RUNNING, "width": 1.2}, 0.8
    if trial.stored_state is StoredState.PRUNED:
        return "pruned", {"color": PRUNED, "width": 1, "dash": "dot"}, 0.8
    return "complete", {"color": COMPLETE, "width": 1}, 0.35


def best_trial_losses(status: StudyStatus) -> Plot:
    """Training and validation loss of the search's best trial, which show where it begins to overfit."""
    best = status.summary.require_best()
    is_classified = status.summary.metric.task is Task.CLASSIFICATION
    unit, loss, title = "", "Mean squared error (of the standardised target)", "mean squared error"
    if is_classified:
        unit, loss, title = " nats", "Mean negative log-likelihood", "mean NLL (nats per image)"
    epochs = [record.epoch for record in best.curve]
    train = [record.train_nll for record in best.curve]
    validation = [record.validation_nll for record in best.curve]
    figure = go.Figure()
    curves = (("training", train, COMPLETE, "dash"), ("validation", validation, BEST, "solid"))
    for name, losses, colour, dash in curves:
        places, hover = zip(epochs, losses, strict=True), f"{name}, epoch %{{x}}: %{{y:.4f}}{unit}"
        style = {"line": {"color": colour, "width": 2, "dash": dash}, "marker": {"color": colour, "size": 8}}
        figure.add_trace(scatter(name, places, hover, mode=_mode(best.curve), **style))
    if best.best_epoch:
        side = "left" if 2 * best.best_epoch > len(epochs) else "right"
        figure.add_vline(
            x=best.best_epoch,
            line={"color": PRUNED, "dash": "dot", "width": 1},
            annotation={"text": f"best at epoch {best.best_epoch}", "font": {"color": PRUNED}},
            annotation_position=f"top {side}",
        )
    y = {
        "title": {"text": title},
        **number_axis([loss for loss in (*train, *validation) if loss is not None]),
    }
    styled(figure, height=360, xaxis=counting_axis("epoch", 1, max(epochs)), yaxis=y)
    return Plot(
        caption=f"{loss} of trial {best.number}, without the regularisation terms. Training: "
        "over each epoch's minibatches, before their updates. Validation: at the epoch's best validation.",
        figure=figure,
    )


def parameter_importance(status: StudyStatus) -> Plot:
    """The importance of each searched parameter for the value, estimated by Optuna (PED-ANOVA)."""
    reason = _why_no_importance(status.summary)
    if reason:
        return Plot(caption=f"No importances: {reason}.")
    with warnings.catch_warnings(record=True) as doubts:  # warnings such as "may be inaccurate" go into the caption
        warnings.simplefilter("always")
        figure = optuna.visualization.plot_param_importances(optuna_study(status.summary))
    bars = figure.data[0]
    bars.update(marker={"color": COMPLETE}, hovertemplate="%{y}: %{x:.3f}<extra></extra>")
    bars.y = [
        plot_text(name.removesuffix(ZERO_SUFFIX) + " is 0" if name.endswith(ZERO_SUFFIX) else name) for name in bars.y
    ]
    styled(
        figure,
        height=130 + 44 * len(bars.y),
        xaxis_title="importance (share; the sum is 1)",
        yaxis={"title": None, "showgrid": False},
        showlegend=False,
    )
    caption = (
        "How much each parameter decides whether a trial is among the best, over the complete trials "
        "(PED-ANOVA, as in optuna-dashboard)."
    )
    said = dict.fromkeys(str(doubt.message) for doubt in doubts)
    return Plot(caption=" ".join([caption, *said]), figure=figure)


def optuna_study(summary: StudySummary) -> optuna.Study:
    """An in-memory copy of the study as the summary has it, for Optuna's plot."""
    snapshot = StudySnapshot(study_name=summary.name, study_id=summary.study.study_id)
    snapshot.replace_trials(_with_losses(trial) for trial in summary.trials if not trial.is_superseded)
    return snapshot.study


def _with_losses(trial: TrialSummary) -> FrozenTrial:
    """The trial for Optuna's plot, which takes lower values for better ones."""
    frozen = trial.frozen()
    frozen.value = trial.loss
    return frozen


def _why_no_importance(summary: StudySummary) -> str | None:
    complete = summary.complete
    if len(complete) < 2:
        return f"they need at least 2 complete trials, and there is {len(complete)}"
    if len({trial.value for trial in complete}) < 2:
        return f"all {len(complete)} complete trials have the same value"
    names = {name for trial in complete for name in trial.parameters}
    if not any(len({trial.parameters.get(name) for trial in complete}) > 1 for name in names):
        return "no parameter has more than one value among the complete trials"
    return None
