"""What every command shares: strict parsing, one readable message for a user's mistake, exit codes, logging.

Nothing heavy is imported here, nor by the modules beside it before the arguments are parsed: `-h` stays fast.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from samunet.cli.process import explain, set_up_logging, terminated_like_interrupted, write_any_name
from samunet.data.limits import core_quota
from samunet.data.workers import available_cores
from samunet.errors import SamunetError, unknown_name

if TYPE_CHECKING:
    from samunet.workspace import Workspace

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


class CommandParser(argparse.ArgumentParser):
    """An argument parser without abbreviations that refuses unknown flags by name.

    argparse reads `-devise cpu` as `-d evise`; here a word that starts with a dash must be a declared flag.
    """

    def __init__(self, prog: str, description: str, examples: str = "") -> None:
        epilog = f"examples:\n{examples}" if examples else None
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = self._with_values(sys.argv[1:] if args is None else args)
        known = {option for action in self._actions for option in action.option_strings}
        for word in words:
            flag = word.split("=", 1)[0]
            if flag.startswith("-") and flag not in known and not _is_number(word):
                self.error(str(unknown_name("flag", flag, known)))
        return super().parse_args(words, namespace)

    def _with_values(self, words: Sequence[str]) -> list[str]:
        """Give flags with an optional value theirs, so that `--npz 101 2d 0` does not take 101 for it."""
        optional = {
            option: action
            for action in self._actions
            if action.nargs == "?" and action.choices
            for option in action.option_strings
        }
        result = []
        for word, following in zip(words, [*words[1:], ""]):
            action = optional.get(word)
            taken = action is not None and action.choices is not None and following in action.choices
            result.append(word if action is None or taken else f"{word}={action.const}")
        return result

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith((".", "?")) else "."
        print(f"{self.prog}: {message}{stop} See `{self.prog} -h`.", file=sys.stderr)
        raise SystemExit(EXIT_MISTAKE)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def run_command(
    parser: CommandParser, action: Callable[[argparse.Namespace], int], argv: Sequence[str] | None
) -> int:
    """Parse, act, and turn a user's mistake into one message on stderr and exit code 2.

    Returns:
        0 when all went well, 2 for a mistake (also one in a single case), 130 when interrupted.
    """
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    # What a program reads holds nothing else.
    screen = sys.stderr if getattr(arguments, "json", False) else sys.stdout
    write_any_name(sys.stdout, sys.stderr)
    set_up_logging(screen, verbose=getattr(arguments, "verbose", False))
    # Read when torch is loaded, later on. Threads that spin while they wait make a step five times slower as
    # soon as anything else runs on the machine, be it our own workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if core_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))
    try:
        with terminated_like_interrupted():
            code = action(arguments)
        sys.stdout.flush()
        return code
    except SamunetError as mistake:
        return _refuse(parser.prog, str(mistake))
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left: `... | head`
        return EXIT_MISTAKE
    except (OSError, MemoryError, RuntimeError) as problem:
        message = explain(problem)
        if message is None:
            raise
        return _refuse(parser.prog, message)


def _refuse(prog: str, message: str) -> int:
    sys.stdout.flush()
    print(f"{prog}: {message}", file=sys.stderr)
    return EXIT_MISTAKE


def add_common(parser: CommandParser) -> None:
    """Add --workspace and --verbose."""
    group = parser.add_argument_group("where and how")
    group.add_argument(
        "--workspace",
        type=Path,
        metavar="FOLDER",
        help="folder that holds raw, preprocessed, results and weights; else $SAMUNET_WORKSPACE, else "
        "$samunet_raw (or $nnUNet_raw), $samunet_preprocessed and $samunet_results, else ./samunet_workspace",
    )
    group.add_argument("--verbose", action="store_true", help="say more")


def add_workers(parser: CommandParser, also: str = "") -> None:
    """Add -np; `also` says what else it is the number of."""
    parser.add_argument(
        "-np",
        type=positive_int,
        metavar="N",
        help=f"worker processes{also}; by default as many as cores and free memory allow",
    )


def add_sample_workers(parser: CommandParser, usual: str = "all cores but one, at most 12") -> None:
    """Add -np of a training; `usual` says how many there are by default."""
    parser.add_argument(
        "-np",
        type=whole_number,
        metavar="N",
        help=f"processes that prepare samples, 0 for none besides the training's own; by default {usual}",
    )


def add_device(parser: CommandParser, purpose: str) -> None:
    """Add -device."""
    parser.add_argument(
        "-device",
        choices=("auto", "cuda", "mps", "cpu"),
        default="auto",
        help=f"device {purpose}; auto (default) takes CUDA where there is a GPU, else the CPU",
    )


def add_probabilities(parser: argparse._ActionsContainer, *flags: str, kept: str) -> None:
    """Add a flag that keeps probabilities; `arguments.storage` is None without it."""
    parser.add_argument(
        *flags,
        dest="storage",
        nargs="?",
        const="fp16",
        choices=("fp16", "uint8"),
        help=f"keep the {kept} too: fp16 (default) or uint8, half the size, off by at most 1/510",
    )


def add_plan_name(parser: CommandParser, *more_names: str) -> None:
    """Add -p."""
    parser.add_argument(
        "-p",
        *more_names,
        dest="plans",
        metavar="NAME",
        default="samunetPlans",
        help="name of the plan (default samunetPlans)",
    )


def add_settings(group: argparse._ActionsContainer) -> None:
    """Add --set."""
    group.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, such as learning_rate=1e-4; repeatable",
    )


def add_overrides(parser: argparse._ActionsContainer) -> None:
    """Add --set, -encoder and -w: what a user may decide in the planner's place."""
    add_settings(parser)
    parser.add_argument("-encoder", metavar="NAME", help="SAM encoder: vit_tiny, vit_b, vit_l or vit_h")
    parser.add_argument(
        "-w",
        dest="weights",
        type=Path,
        metavar="WEIGHTS",
        help="SAM weights: one file, a folder, which is taken alone, or the name of either in the weights "
        "folder (default: that folder, $SAMUNET_WEIGHTS or else the workspace's weights, then the package)",
    )


def open_workspace(arguments: argparse.Namespace, *, quiet: bool = False) -> Workspace:
    """Find the workspace and say which one it is."""
    from samunet.workspace import Workspace

    workspace = Workspace.find(arguments.workspace)
    if not quiet:
        print(f"Workspace: {workspace.origin}")
    return workspace


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs; values are JSON where they can be, else text. Numbers with commas between them
    are a list, as in brackets.

    Raises:
        SamunetError: a pair without an equals sign, or a key given twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SamunetError(f"--set {pair}: expected KEY=VALUE, for example --set learning_rate=1e-4.")
        if key in settings:
            raise SamunetError(f"--set {key} was given twice; keep one.")
        settings[key] = _value(text)
    return settings


def _value(text: str) -> Any:
    # "none" is a value of some settings (augmentation, encoder_weights); nothing at all is null or None.
    if text == "None":
        return None
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        parts = text.split(",")
        if len(parts) > 1 and all(_is_number(part) for part in parts):
            return [_value(part) for part in parts]
        return float(text) if _is_number(text) else text


def positive_int(text: str) -> int:
    """Read a whole number above zero (for argparse)."""
    return int(_positive(text, int))


def whole_number(text: str) -> int:
    """Read a whole number from 0 (for argparse)."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0.")
    return int(text)


def checkpoint_name(text: str) -> str:
    """Read a checkpoint's file name; `best` is checkpoint_best.pth (for argparse)."""
    stem = text.removesuffix(".pth")
    return f"checkpoint_{stem}.pth" if stem in ("final", "best", "latest") else f"{stem}.pth"


def seed_number(text: str) -> int:
    """Read a random seed, a whole number from 0 (for argparse)."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed, a whole number from 0 to {2**32 - 1}.")
    return number


def positive_float(text: str) -> float:
    """Read a number above zero (for argparse)."""
    return _positive(text, float)


def share(text: str) -> float:
    """Read a share from 0 to 1 (for argparse)."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1.")
    return number


def _positive(text: str, kind: type[int] | type[float]) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * (kind is int)}number above 0.")
    return number


def fold(text: str) -> int | str:
    """Read a fold: a number from 0, or `all` (for argparse)."""
    if text == "all":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a fold; give a number from 0 or `all`.")
    return int(text)
