"""What can be read off an embedding by a linear map: encoders compared without a head, a schedule or a clock.

    python benchmarks/linear_probe.py --data FOLDER --work FOLDER [--weights NAME=FILE ...] [--sizes 224 448]
    python benchmarks/linear_probe.py --work FOLDER --report

Five labelled cases (the draws of few_label.py) are embedded, one picture a slice. Multinomial logistic
regression tells from a token how much of each class its 16 x 16 pixels hold. Its penalty is chosen by leaving
out one case at a time, and so is what is added to the logits of the foreground, without which an uncertain
reading finds nothing at all. On the cases of held_out.json `explained` is the share of the uncertainty about
the classes' shares that the reading takes away from somebody who knows how frequent they are (0: none, below
0: misled), and Dice that of whole cases, the logits enlarged to the slice. Nothing hangs on the machine's
speed.

Beside the weights named and those that ship stand an encoder with random weights (another draw a seed), the
patch's own pixels, and `oracle`: the reference's shares enlarged in the same way, about the best Dice that a
reading at this size can reach. Finished rows stand in WORK/linear_probe.json; start again to go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_label import labelled_cases
from measured_commands import ResultsFile, hardware
from prompted_slices import seen_pictures
from real_runs import seed_difference
from subsets import class_dice, held_out_cases, scores_of
from torch import Tensor
from torch.nn import functional

from samunet.data.dataset import RawDataset
from samunet.networks.picture import covered_pixels
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import PATCH, get_variant
from samunet.networks.sam.weight_files import shipped_weights, weights_sha256
from samunet.networks.sam.weights import read_weights
from samunet.preprocessing.slices import case_slices

ENCODER, LABELLED, BATCH = "vit_tiny", 5, 8
SHIPPED, RANDOM, PIXELS, ORACLE = "shipped", "random", "pixels", "oracle"
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
"""Of the squared weights (features have a variance of 1), beside the mean cross-entropy."""
OFFSETS = tuple(np.arange(0, 5, 0.5).tolist())
"""Added to the logits of foreground classes."""
LEAST_SHARE = 1e-3
"""Of a class in a token of the oracle, before the logarithm."""
ITERATIONS = 100

Encode = Callable[[Tensor], Tensor]
"""Normalised pictures (B, 3, S, S) -> features (B, E, S/16, S/16)."""


@dataclass(frozen=True)
class Seen:
    """A case as an encoder gives it.

    Attributes:
        features: (slices, rows, columns, E): the tokens that the slices cover.
        shares: (slices, rows, columns, K) of each class, the background first, in a token's pixels.
        labels: (slices, H, W) class numbers 0..K-1.
        stretch: factors (rows, columns) from tokens to the slice's pixels.
    """

    features: Tensor
    shares: Tensor
    labels: np.ndarray
    stretch: tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """Logistic regression on standardised features."""

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation @ self.weight + self.bias


@dataclass
class Eye:
    """An encoder that looks at the cases of a dataset, each once.

    Attributes:
        size: pixels of the square that it sees, which a slice's longer side fills.
    """

    raw: RawDataset
    size: int
    encode: Encode

    def __post_init__(self) -> None:
        self._seen: dict[str, Seen] = {}

    def see(self, name: str) -> Seen:
        if name not in self._seen:
            self._seen[name] = self._look(name)
        return self._seen[name]

    def _look(self, name: str) -> Seen:
        images, labels = case_slices(self.raw.read(self.raw.case(name)))
        assert labels is not None
        classes = np.zeros(labels.shape, np.int64)
        for number, values in enumerate(self.raw.labels.foreground.values(), start=1):
            classes[np.isin(labels, values)] = number
        shape = images.shape[-2:]
        covered = covered_pixels(shape, self.size)
        shares = token_shares(classes, len(self.raw.labels.foreground) + 1, covered)
        rows, columns = shares.shape[1:3]
        slices = torch.from_numpy(np.ascontiguousarray(images))
        features = [
            self.encode(seen_pictures(batch, self.size))[..., :rows, :columns]
            for batch in slices.split(BATCH)
        ]
        stretch = (PATCH * shape[0] / covered[0], PATCH * shape[1] / covered[1])
        return Seen(torch.cat(features).movedim(1, -1).clone(), shares, classes, stretch)


def token_shares(classes: np.ndarray, number: int, covered: tuple[int, int]) -> Tensor:
    """Class numbers (slices, H, W) -> share of each in each token's part of the slice (slices, r, c, K)."""
    one_hot = functional.one_hot(torch.from_numpy(classes), number).movedim(-1, 1).float()
    shown = functional.interpolate(one_hot, covered, mode="bilinear", antialias=True)
    shares = functional.avg_pool2d(
        functional.pad(shown, [0, -covered[1] % PATCH, 0, -covered[0] % PATCH]), PATCH
    )
    return (shares / shares.sum(1, keepdim=True)).movedim(1, -1)


def own_pixels(picture: Tensor) -> Tensor:
    """The 256 grey values of each patch."""
    return functional.pixel_unshuffle(picture.mean(1, keepdim=True), PATCH)


def encoder_of(weights: Path | None, size: int, seed: int) -> Encode:
    """An encoder with the weights of a file, or random ones."""
    torch.manual_seed(seed)
    encoder = SamImageEncoder(get_variant(ENCODER), size).eval()
    if weights is not None:
        encoder.load_tables(read_weights(weights, ENCODER).image_encoder)
    return torch.inference_mode()(encoder.forward)


def fit(cases: Sequence[Seen], penalty: float) -> Reading:
    """Weights that minimise cross-entropy with the shares, by L-BFGS."""
    features = torch.cat([case.features.flatten(0, 2) for case in cases])
    shares = torch.cat([case.shares.flatten(0, 2) for case in cases])
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    features = (features - mean) / deviation
    weight = torch.zeros(features.shape[1], shares.shape[1], requires_grad=True)
    bias = shares.mean(0).log().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(features @ weight + bias, shares) + penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type,no-untyped-call]
    return Reading(mean, deviation, weight.detach(), bias.detach())


def enlarged(case: Seen, logits: Tensor) -> Tensor:
    """Logits (slices, rows, columns, K) brought to the slices' pixels (slices, K, H, W)."""
    found = functional.interpolate(logits.movedim(-1, 1), scale_factor=[*case.stretch], mode="bilinear")
    height, width = case.labels.shape[1:]
    found = found[..., :height, :width]
    lacking = (0, width - found.shape[-1], 0, height - found.shape[-2])
    return functional.pad(found, lacking, mode="replicate")


def labelled(logits: Tensor, offset: float = 0.0) -> np.ndarray:
    """Class numbers (slices, H, W) of enlarged logits, those of the foreground raised by an offset."""
    return torch.cat([logits[:, :1], logits[:, 1:] + offset], dim=1).argmax(1).numpy()


def surprise(case: Seen, logits: Tensor) -> float:
    """Mean cross-entropy of a case's shares, in nats a token."""
    return float(functional.cross_entropy(logits.flatten(0, 2), case.shares.flatten(0, 2)))


def chosen(cases: Sequence[Seen]) -> tuple[float, float]:
    """The penalty under which a case that is left out surprises least, and the offset of its best Dice."""
    rest = [[*cases[:index], *cases[index + 1 :]] for index in range(len(cases))]
    left_out = {
        penalty: [fit(others, penalty)(case.features) for case, others in zip(cases, rest)]
        for penalty in PENALTIES
    }
    surprises = {tried: np.mean([*map(surprise, cases, found)]) for tried, found in left_out.items()}
    penalty = min(PENALTIES, key=lambda tried: surprises[tried])
    logits = [enlarged(case, found) for case, found in zip(cases, left_out[penalty])]

    def left_out_dice(offset: float) -> float:
        return float(np.mean([mean_dice(case, found, offset) for case, found in zip(cases, logits)]))

    return penalty, max(OFFSETS, key=left_out_dice)


def mean_dice(case: Seen, logits: Tensor, offset: float) -> float:
    """Over the classes of a case, from enlarged logits; 0 where there is none."""
    names = {str(number): number for number in range(1, logits.shape[1])}
    found = [v for v in class_dice(case.labels, labelled(logits, offset), names).values() if v is not None]
    return float(np.mean(found)) if found else 0.0


def probe(eye: Eye, training: Sequence[str], test: Sequence[str]) -> dict[str, Any]:
    """Scores of what a linear map learns from the training cases."""
    cases = [eye.see(name) for name in training]
    penalty, offset = chosen(cases)
    reading = fit(cases, penalty)
    logits = {name: reading(eye.see(name).features) for name in test}
    known = np.mean([surprise(eye.see(name), logits[name]) for name in test])
    prior = torch.cat([case.shares.flatten(0, 2) for case in cases]).mean(0).log()
    guessed = np.mean([surprise(eye.see(name), prior.expand_as(logits[name])) for name in test])
    scores = dice_of(eye, logits, offset)
    return {**scores, "explained": float(1 - known / guessed), "penalty": penalty, "offset": offset}


def oracle(eye: Eye, test: Sequence[str]) -> dict[str, Any]:
    """Scores of a reading that knows the shares."""
    return dice_of(eye, {name: eye.see(name).shares.clamp_min(LEAST_SHARE).log() for name in test})


def dice_of(eye: Eye, logits: dict[str, Tensor], offset: float = 0.0) -> dict[str, Any]:
    """In the form of `subsets.dice_scores`."""
    names = {name: number for number, name in enumerate(eye.raw.labels.foreground, start=1)}
    rows = {}
    for name, found in logits.items():
        case = eye.see(name)
        rows[name] = class_dice(case.labels, labelled(enlarged(case, found), offset), names)
    return scores_of(rows)


def run(arguments: argparse.Namespace, results: ResultsFile) -> None:
    """All rows that are not there yet."""
    files: dict[str, Path | None] = {
        ORACLE: None,
        PIXELS: None,
        SHIPPED: shipped_weights(ENCODER),
        RANDOM: None,
    }
    files.update(
        {name: Path(file) for name, _, file in (given.partition("=") for given in arguments.weights)}
    )
    for dataset in arguments.datasets:
        raw, test = RawDataset.load(arguments.data / dataset), held_out_cases(dataset)
        for size in arguments.sizes:
            for name, file in files.items():
                eye = Eye(raw, size, own_pixels if name in (ORACLE, PIXELS) else encoder_of(file, size, 0))
                for seed in arguments.seeds if name != ORACLE else [0]:
                    step = f"{dataset} {size} {name} seed{seed}"
                    if step in results.steps:
                        continue
                    if name == RANDOM:
                        eye = Eye(raw, size, encoder_of(None, size, seed))
                    drawn = labelled_cases(arguments.data / dataset, dataset, LABELLED, seed)
                    scores = oracle(eye, test) if name == ORACLE else probe(eye, drawn, test)
                    sha256 = None if file is None else weights_sha256(file)
                    results.save(step, {**scores, "weights_sha256": sha256})
                    print(f"{step}: {summary(scores)}", flush=True)


def summary(scores: dict[str, Any]) -> str:
    explained = "" if "explained" not in scores else f", explained {scores['explained']:.3f}"
    return f"Dice {scores['dice']:.3f}{explained}"


def report(steps: dict[str, Any]) -> None:
    """Mean Dice over seeds by encoder, and its lead over random weights."""
    rows: dict[tuple[str, str], dict[str, dict[int, Any]]] = {}
    for step, scores in steps.items():
        dataset, size, name, seed = step.split()
        rows.setdefault((dataset, size), {}).setdefault(name, {})[int(seed.removeprefix("seed"))] = scores
    for (dataset, size), found in rows.items():
        print(f"\n{dataset}, {size} pixels, {LABELLED} labelled cases")
        for name, seeds in sorted(found.items(), key=lambda row: -mean_of("dice", row[1])):
            shown = " ".join(f"{scores['dice']:.3f}" for scores in seeds.values())
            line = f"  {name:14} Dice {mean_of('dice', seeds):.3f} ({shown})"
            if name != ORACLE:
                line += f"  explained {mean_of('explained', seeds):+.3f}"
                lead = None if name == RANDOM else seed_difference(seeds, found.get(RANDOM, {}))
                if lead is not None:
                    line += f"  over random {lead.mean:+.1f} points [{lead.low:+.1f}, {lead.high:+.1f}]"
            print(line)


def mean_of(key: str, seeds: dict[int, Any]) -> float:
    return float(np.mean([scores[key] for scores in seeds.values()]))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a linear map reads off the embeddings of encoders.")
    parser.add_argument("--data", type=Path, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="folder of the results file")
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE", help="further weights")
    parser.add_argument("--datasets", nargs="+", default=["Dataset002_ACDC"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448], help="pixels of the longer side")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="only print what there is")
    parser.add_argument("--keep", type=Path, help="copy the results file into this folder at the end")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    file: Path = arguments.work.resolve() / "linear_probe.json"
    if arguments.report:
        report(json.loads(file.read_text())["steps"])
        return
    if arguments.data is None:
        raise SystemExit("Give --data FOLDER, or --report.")
    results = ResultsFile(file, {"hardware": hardware(), "encoder": ENCODER})
    run(arguments, results)
    report(results.steps)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, arguments.keep / file.name)


if __name__ == "__main__":
    main()
