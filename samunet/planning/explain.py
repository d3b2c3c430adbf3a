"""A plan in plain text: the table of methods, and why."""

from __future__ import annotations

import textwrap

from samunet.planning.plan import RANDOM, Configuration, Plan, Verdict
from samunet.planning.standing import shown_hours

WIDTH = 110
HEADER = ("method", "verdict", "encoder", "sees", "batch", "memory", "cache", "one fold")
_ORDER = ("recommended", "fits", "does not fit", "unsuitable")


def explain(plan: Plan) -> str:
    """The plan's data, its table of methods, and the reasons for each; lines of at most 110 characters."""
    lines = [_heading(plan), *data_lines(plan), ""]
    lines += _table(method_table(plan))
    for verdict in _ordered(plan):
        lines += ["", f"{verdict.method}: {verdict.status}"]
        for reason in verdict.reasons:
            lines += textwrap.wrap(reason, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    lines += ["", *textwrap.wrap(_conclusion(plan), WIDTH)]
    return "\n".join(lines)


def method_table(plan: Plan) -> list[tuple[str, ...]]:
    """The header and a row a method, the recommended one first."""
    return [HEADER, *(_row(plan, verdict) for verdict in _ordered(plan))]


def _ordered(plan: Plan) -> list[Verdict]:
    return sorted(plan.verdicts, key=lambda verdict: _ORDER.index(verdict.status))


def _heading(plan: Plan) -> str:
    budget = plan.budget
    what = "main memory" if budget.device == "cpu" else "GPU memory"
    return (
        f"{plan.dataset}, plan {plan.name}: {plan.num_training} cases, "
        f"{len(plan.channel_names)} channel(s), {', '.join(plan.labels.foreground)}\n"
        f"Budget: {budget.device}, {budget.memory_gb:g} GB {what}, {budget.hours:g} hours a fold, "
        f"{budget.disk_gb:g} GB disk"
    )


def data_lines(plan: Plan) -> list[str]:
    """Spacing, size, normalisation and axes of preprocessed data, what was overridden, the weights."""
    lines = []
    for data in plan.data.values():
        spacing = " x ".join(f"{s:.4g}" for s in data.spacing_mm)
        median = " x ".join(f"{n:g}" for n in data.median_shape)
        schemes = ", ".join(dict.fromkeys(data.normalization))
        lines.append(f"Data {data.name}: {spacing} mm, median {median} voxels, {schemes}")
    if plan.transpose_forward != (0, 1, 2):
        order = ", ".join("zyx"[axis] for axis in plan.transpose_forward)
        first = "the axis of one slice" if plan.original_median_shape[0] == 1 else "the coarsest"
        lines.append(f"Axes are reordered to {order} of the file, so that {first} comes first.")
    if plan.goal != "accuracy":
        lines.append(f"Goal: {plan.goal}")
    for key, value in plan.overrides.items():
        lines.append(f"You set {key}: {value}")
    for encoder, used in plan.weights.items():
        adapted = ", with adapters" * used.adapted
        lines.append(f"Weights of {encoder}: {used.file} (SHA-256 {used.sha256[:12]}...){adapted}")
    return lines


def _row(plan: Plan, verdict: Verdict) -> tuple[str, ...]:
    if verdict.method not in plan.configurations:
        return (verdict.method, verdict.status, *("-" for _ in HEADER[2:]))
    chosen = plan.configurations[verdict.method]
    forecast = chosen.forecast
    return (
        verdict.method,
        verdict.status,
        _encoder(chosen),
        f"{chosen.input_size} px" if chosen.input_size else " x ".join(map(str, chosen.patch_size)),
        str(chosen.batch_size),
        f"{forecast.memory_gb:.1f} GB",
        f"{forecast.cache_gb:.1f} GB" if forecast.cache_gb else "-",
        shown_hours(forecast.train_hours),
    )


def _encoder(configuration: Configuration) -> str:
    if configuration.encoder is None:
        return "-"
    if configuration.encoder_weights == "none":
        return f"{configuration.encoder}, from scratch"
    trained = "fine-tuned" if configuration.settings.get("encoder") == "full" else "frozen"
    return f"{configuration.encoder}, {configuration.encoder_weights}, {trained}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _conclusion(plan: Plan) -> str:
    if not plan.recommended:
        return (
            "Nothing is recommended: no method fits the budget. Allow more hours (--hours), plan for a GPU "
            "(-gpu_memory_target), or train one of the methods above knowing what it lacks."
        )
    deciding = next(v for v in plan.verdicts if v.method == plan.recommended).reasons[0]
    weights = (
        ""
        if _has_weights(plan)
        else (
            " No method of this plan starts from SAM's own weights: `samunet_download_weights vit_b` fetches "
            "them where they are missing, then plan again; with too few --hours they stay unused."
        )
    )
    return f"Recommended: {plan.recommended}. {deciding}{weights}"


def _has_weights(plan: Plan) -> bool:
    chosen = plan.configurations.values()
    return any(c.has_sam_weights or c.encoder_weights == RANDOM for c in chosen)
