"""samunet_pretrain: train a small SAM on generated pictures, labelled datasets or plain images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samunet.cli.common import (
    EXIT_INTERRUPTED,
    CommandParser,
    add_common,
    add_device,
    add_sample_workers,
    open_workspace,
    parse_settings,
    positive_float,
    positive_int,
    run_command,
    seed_number,
)
from samunet.errors import SamunetError

if TYPE_CHECKING:
    from samunet.pipeline.pretrain.run import PretrainOptions

EXAMPLES = """\
  samunet_pretrain --synthetic --time_budget 30 -o first_try
  samunet_pretrain --synthetic -d 4 5 --exclude benchmarks/held_out.json --time_budget 120 -o second_try
  samunet_pretrain --images photographs --tasks mae=1,emix=0.2 -o plain
  samunet_pretrain -d 4 --adapters -encoder vit_b -w sam_vit_b_01ec64.pth --set input_size=448 -o adapted
  samunet_pretrain --synthetic --show 32 samples.png"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_pretrain",
        "Pretrain a small SAM (encoder, prompt encoder and mask decoder), or adapters in a large one that is "
        "kept as it is. Labels are not needed. The result is a weights file with a card that says what it "
        "was made of.",
        EXAMPLES,
    )
    _add_sources(parser)
    _add_training(parser)
    _add_run(parser)
    add_device(parser, "to train on")
    add_sample_workers(parser, "one on a CPU, else all cores but one, at most 12")
    add_common(parser)
    return parser


def _add_sources(parser: CommandParser) -> None:
    group = parser.add_argument_group("sources (at least one)")
    group.add_argument("--synthetic", action="store_true", help="pictures and objects made on the fly")
    group.add_argument(
        "-d",
        dest="datasets",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="raw datasets by id or name; labels are used where there are any",
    )
    group.add_argument(
        "--images",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="images without labels, subfolders included; repeatable",
    )
    group.add_argument(
        "--exclude", type=Path, metavar="JSON", help="cases that must not be seen, such as held_out.json"
    )
    group.add_argument(
        "--licence",
        dest="licences",
        nargs="+",
        action="extend",
        default=[],
        metavar="SOURCE=LICENCE",
        help="licence of the images of a dataset or folder, for the card: 4=MIT photographs=CC-BY-4.0; goes "
        "before that of dataset.json",
    )
    group.add_argument(
        "--synthetic_share",
        type=float,
        metavar="SHARE",
        help="chance of a generated picture where there are other sources too (default 0.5)",
    )
    group.add_argument(
        "--show",
        nargs=2,
        metavar=("N", "FILE"),
        help="draw N samples with their objects and prompts into a PNG file, and stop",
    )


def _add_training(parser: CommandParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--tasks",
        metavar="TASKS",
        help="prompt, mae, emix, shed, teacher with weights: prompt=1,mae=0.5 (default; mae alone for "
        "--images alone); without a number 1",
    )
    group.add_argument(
        "-teacher",
        metavar="FILE",
        help="a SAM whose embeddings are learnt: a weights file, or vit_b for the one in the weights folder; "
        "adds teacher=1 to the default tasks",
    )
    group.add_argument("-encoder", metavar="NAME", help="SAM encoder (default vit_tiny)")
    group.add_argument(
        "-w",
        dest="weights",
        type=Path,
        metavar="FILE",
        help="SAM weights of that encoder to begin with: a file, a name in the weights folder, or vit_tiny "
        "for its file there, else those that come with samunet",
    )
    group.add_argument(
        "--adapters",
        action="store_true",
        help="keep the encoder of -w as it is and train adapters in its blocks",
    )
    group.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help="training steps (default 2000: over an hour on a CPU)",
    )
    group.add_argument("--batch", type=positive_int, metavar="N", help="pictures a step (default 8)")
    group.add_argument(
        "--time_budget", type=positive_float, metavar="MINUTES", help="shorten the schedule to this time"
    )
    group.add_argument("--seed", type=seed_number, metavar="N", help="random seed (default 0)")
    group.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another setting, such as learning_rate=1e-3; repeatable",
    )


def _add_run(parser: CommandParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "-o",
        dest="name",
        default="pretrained",
        metavar="NAME",
        help="name of the result NAME.pth in the weights folder (default pretrained); a name that "
        "holds the encoder's, such as samunet_vit_tiny, is found without -w",
    )
    group.add_argument(
        "--c",
        dest="resume",
        action="store_true",
        help="continue: the same command with --c; its length is kept",
    )
    group.add_argument(
        "--fp16",
        dest="pair",
        action="store_true",
        help="write the result also as two safetensors files of half the size, in the folder NAME_fp16",
    )
    group.add_argument("--overwrite", action="store_true", help="replace run and result of this name")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_pretrain -h`."""
    return run_command(build_parser(), _run, argv)


def _check_share(arguments: argparse.Namespace) -> None:
    share = arguments.synthetic_share
    if share is None:
        return
    if not 0 <= share <= 1:
        raise SamunetError(f"--synthetic_share {share} must lie between 0 and 1.")
    if not arguments.synthetic:
        raise SamunetError("--synthetic_share has no effect without --synthetic. Add that, or leave it out.")


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.contact_sheet import draw_samples
    from samunet.pipeline.pretrain.run import pretrain, shown_source

    if arguments.resume and arguments.overwrite:
        raise SamunetError("--c and --overwrite exclude each other: continue the run, or replace it.")
    _check_share(arguments)
    shown = _shown(arguments.show)
    options = _options(arguments)
    workspace = open_workspace(arguments)
    if shown is not None:
        with shown_source(workspace, options) as source:
            print(f"Samples: {draw_samples(source, *shown)}")
        return 0
    outcome = pretrain(workspace, options)
    print(outcome.text())
    return EXIT_INTERRUPTED if outcome.weights is None else 0


def _shown(words: list[str] | None) -> tuple[int, Path] | None:
    if words is None:
        return None
    number, file = words[0], Path(words[1])
    if not number.isdecimal() or int(number) < 1 or file.suffix.lower() != ".png":
        raise SamunetError(f"--show {number} {file}: expected a number above 0 and a .png file.")
    return int(number), file


def _options(arguments: argparse.Namespace) -> PretrainOptions:
    from samunet.pipeline.pretrain.run import PretrainOptions, with_settings
    from samunet.trainers.pretraining import PretrainSettings

    settings = with_settings(PretrainSettings(), _settings(arguments))
    return PretrainOptions(
        name=arguments.name,
        settings=settings,
        synthetic=arguments.synthetic,
        datasets=tuple(arguments.datasets),
        images=tuple(arguments.images),
        exclude=arguments.exclude,
        licences=parse_licences(arguments.licences),
        teacher=arguments.teacher,
        weights=arguments.weights,
        **({} if arguments.synthetic_share is None else {"synthetic_share": arguments.synthetic_share}),
        time_budget_minutes=arguments.time_budget,
        device=arguments.device,
        workers=arguments.np,
        pair=arguments.pair,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """--set with the flags that are settings too."""
    settings = parse_settings(arguments.settings)
    flags = {
        "encoder": arguments.encoder,
        "adapters": arguments.adapters or None,
        "steps": arguments.steps,
        "batch_size": arguments.batch,
        "seed": arguments.seed,
    }
    if arguments.tasks is not None:
        flags["tasks"], flags["weights"] = parse_tasks(arguments.tasks)
    elif not {"tasks", "weights"} & settings.keys():
        tasks = _default_tasks(arguments)
        flags["tasks"], flags["weights"] = list(tasks), list(tasks.values())
    for name, value in flags.items():
        if value is None:
            continue
        if name in settings:
            raise SamunetError(f"--set {name}=... repeats a flag; keep one.")
        settings[name] = value
    return settings


def _default_tasks(arguments: argparse.Namespace) -> dict[str, float]:
    """Objectives that the sources can serve, and their weights."""
    if arguments.synthetic or arguments.datasets:
        tasks = {"prompt": 1.0, "mae": 0.5}
    else:
        tasks = {"mae": 1.0}
        print("Images without labels alone: the task is mae (--tasks chooses another).")
    return tasks if arguments.teacher is None else {**tasks, "teacher": 1.0}


def parse_licences(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Read `4=MIT`, `photographs=CC-BY-4.0`: source and licence.

    Raises:
        SamunetError: one of the two is missing.
    """
    pairs = []
    for word in words:
        source, equals, licence = (part.strip() for part in word.rpartition("="))
        if not (source and equals and licence):
            raise SamunetError(f"--licence {word}: write SOURCE=LICENCE, such as --licence 4=MIT 5=CC0-1.0.")
        pairs.append((source, licence))
    return tuple(pairs)


def parse_tasks(text: str) -> tuple[list[str], list[float]]:
    """Read `prompt=1,mae=0.5` or `prompt,mae`.

    Raises:
        SamunetError: a weight that is not a number.
    """
    names, weights = [], []
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            weights.append(float(weight or 1))
        except ValueError:
            raise SamunetError(
                f"--tasks {text}: {weight!r} is not a number; write prompt=1,mae=0.5."
            ) from None
        names.append(name)
    return names, weights
