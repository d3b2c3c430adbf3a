"""MODEL_CARD.md: what a shared model is, what it was made from and how well it did, from its own records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from samunet.pipeline.model_file.contents import SCORES_FILE
from samunet.pipeline.model_file.scores import Mean, SharedScores
from samunet.planning.fingerprint_envelope import FingerprintEnvelope, Spread
from samunet.planning.methods import get_method
from samunet.planning.plan import Plan
from samunet.trainers.portable import ModelRecord
from samunet.workspace import ENVELOPE_FILE, POSTPROCESSING_FILE

NOT_STATED = "not stated"
TIMES = " x "


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        record: model.json, its list of files still empty.
        plan: of the folds.
        description: of the dataset, in the words of its dataset.json.
        envelope / scores: None where there are none; `unscored` says which folds have no scores, and why.
        postprocessing: the rules in plain words, or None.
    """

    record: ModelRecord
    plan: Plan
    description: str
    envelope: FingerprintEnvelope | None
    scores: SharedScores | None
    unscored: tuple[str, ...]
    postprocessing: str | None


def write_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    record, plan = facts.record, facts.plan
    method = get_method(record.method)
    parts = [
        f"# {record.dataset}: {record.folder_name}\n",
        f"Segments {', '.join(plan.labels.foreground)} in images with the channels "
        f"{', '.join(plan.channel_names)} (`{plan.file_ending}`).\n",
        "A research model. It is not a medical device and has not been tested for clinical use.\n",
        f"- Licence of the model: {record.licence}\n"
        f"- Made by samunet {record.samunet}, shared on {record.created}\n"
        f"- Method: `{record.method}`, {method.summary} ({method.source})\n"
        f"- Folds: {', '.join(map(str, record.folds))} (`{record.checkpoint}`); their logits are averaged\n",
        *_section("How to use it", _usage(facts)),
        *_section("What it was trained on", _data(facts)),
        *_section("How it was trained", _training(facts)),
        *_section("Weights that it stands on, and their licences", _weights(facts)),
        *_section("How well it did", _scores(facts)),
        *_section("What was left out of this file", _left_out(facts)),
    ]
    return "\n".join(parts)


def _section(title: str, lines: Iterator[str]) -> list[str]:
    return [f"## {title}\n", "\n".join(lines) + "\n"]


def _usage(facts: CardFacts) -> Iterator[str]:
    record = facts.record
    yield "```"
    yield "samunet_install_model FILE.zip -o FOLDER"
    yield "samunet_predict -i IMAGES -o OUT -m FOLDER"
    if facts.postprocessing:
        yield "samunet_apply_postprocessing -i OUT -o OUT_PP -pp_file FOLDER/postprocessing.json"
    yield "```\n"
    ending = facts.plan.file_ending
    names = [f"`CASE_{i:04d}{ending}` ({name})" for i, name in enumerate(facts.plan.channel_names)]
    yield f"IMAGES holds for every case {', '.join(names)}."
    if facts.postprocessing:
        yield f"\n`{POSTPROCESSING_FILE}`: {facts.postprocessing}."
    if any(origin.place == "left out" for origin in record.weights):
        yield "\nWeights that are left out (see below) must lie in a weights folder; SHA-256 finds them."


def _data(facts: CardFacts) -> Iterator[str]:
    if facts.description:
        yield f"{facts.description}\n"
    envelope = facts.envelope
    if envelope is None:
        yield f"{facts.plan.num_training} training cases; their ranges are not known (no fingerprint)."
        return
    axes = "y, x" if envelope.is_2d else "z, y, x"
    first = 1 if envelope.is_2d else 0
    yield f"{envelope.cases} training cases. Ranges over them (`{ENVELOPE_FILE}` has more):\n"
    yield "| | from | median | to |"
    yield "|---|---|---|---|"
    rows = [
        (f"spacing {axes} (mm)", envelope.spacing_mm[first:]),
        (f"size {axes} (voxels)", envelope.shape[first:]),
        (f"extent {axes} (mm)", envelope.extent_mm[first:]),
    ]
    for title, spreads in rows:
        yield f"| {title} | {_join(spreads, 'min')} | {_join(spreads, 'median')} | {_join(spreads, 'max')} |"
    for channel in envelope.channels:
        low, high = channel.percentile_00_5, channel.percentile_99_5
        yield (
            f"| {channel.name}: 0.5th and 99.5th percentile | {low.min:.4g}, {high.min:.4g} | "
            f"{low.median:.4g}, {high.median:.4g} | {low.max:.4g}, {high.max:.4g} |"
        )
    for name, found in envelope.classes.items():
        if found.volume is not None:
            spread, unit = found.volume, "1000 mm²" if envelope.is_2d else "ml"
            yield (
                f"| {name} ({unit}, in {found.cases} cases) | {spread.min:.4g} | {spread.median:.4g} | "
                f"{spread.max:.4g} |"
            )
    yield "\nImages outside these ranges are outside what the model has seen."


def _join(spreads: tuple[Spread, ...], key: str) -> str:
    return TIMES.join(f"{getattr(spread, key):.4g}" for spread in spreads)


def _training(facts: CardFacts) -> Iterator[str]:
    configuration = facts.plan.configuration(facts.record.configuration)
    yield (
        f"Patches of {TIMES.join(map(str, configuration.patch_size))}, batches of "
        f"{configuration.batch_size}. Settings that differ from the method's own: "
        f"{', '.join(f'`{k}={v}`' for k, v in configuration.settings.items()) or 'none'}.\n"
    )
    if not facts.record.training:
        yield "How long it was trained is not known (no run.json)."
        return
    yield "| fold | cases | epochs x steps | on |"
    yield "|---|---|---|---|"
    for fold in facts.record.training:
        yield f"| {fold.fold} | {fold.cases} | {fold.epochs} x {fold.iterations} | {fold.device} |"


def _weights(facts: CardFacts) -> Iterator[str]:
    if not facts.record.weights:
        yield _without_weights(facts)
    for origin in facts.record.weights:
        yield (
            f"- `{origin.file}` ({origin.variant}, {origin.kind}): {origin.place}. Licence: "
            f"{origin.licence}. SHA-256 `{origin.sha256}`"
        )


def _without_weights(facts: CardFacts) -> str:
    configuration = facts.plan.configuration(facts.record.configuration)
    if configuration.encoder and configuration.encoder_weights == "random":
        return "None: the encoder is random and was not trained."
    if configuration.encoder and not facts.record.training:
        return "Not known (no run.json)."
    return "None: everything was trained from scratch."


def _scores(facts: CardFacts) -> Iterator[str]:
    scores = facts.scores
    if scores is None:
        yield f"There are no scores: {'; '.join(facts.unscored) or 'no fold was validated'}."
        return
    yield (
        f"Cross-validation: {_counted(scores)}, each predicted by the "
        f"fold ({', '.join(map(str, scores.folds))}) that had not seen it. In brackets 95 % intervals "
        f"(bootstrap of the {scores.unit}s). Surface Dice at {scores.tolerance_mm:g} mm.\n"
    )
    if scores.known.cases:
        yield f"{scores.known.text()}\n"
    yield "| class | Dice | n | surface Dice | HD95 (mm) |"
    yield "|---|---|---|---|---|"
    for name, metrics in scores.classes.items():
        dice = metrics["Dice"]
        yield (
            f"| {name} | {_figure(dice, 3)} | {dice.cases} | {_figure(metrics['SurfaceDice'], 3)} | "
            f"{_figure(metrics['HD95'], 2)} |"
        )
    yield f"| mean of the classes | {_figure(scores.dice, 3)} | {scores.dice.cases} | | |"
    for reason in scores.left_out:
        yield f"\nWithout scores: {reason}."
    yield (
        "\nScores are of single folds, not of their average. The cases come from the same source as those of "
        f"the training; elsewhere scores are usually lower. `{SCORES_FILE}` has all figures."
    )


def _counted(scores: SharedScores) -> str:
    cases = f"{scores.cases} cases"
    return cases if scores.unit == "case" else f"{cases} of {scores.units} {scores.unit}s"


def _figure(mean: Mean, digits: int) -> str:
    if mean.value is None:
        return "–"
    told = f"{mean.value:.{digits}f}"
    return told if mean.low is None else f"{told} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"


def _left_out(facts: CardFacts) -> Iterator[str]:
    yield (
        "- Names of cases, patients and sites (but what the name of the model may say), hashes of images, "
        "figures of single cases (but the ends of ranges), who was in which fold: they could lead back to "
        "patients."
    )
    yield "- Optimizer, random states, histories: only continuing a training needs them."
    if facts.scores is not None and facts.scores.per_case is not None:
        yield f"\nScores of single cases **with their names** are in `{SCORES_FILE}`: that was asked for."
