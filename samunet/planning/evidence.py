"""What our own trainings say of the planner's rules: a sentence each, with the place of the record.

All of it is of `vit_tiny` and of ten minutes of training on one or two cores, unless a sentence says
otherwise. A method that a rule was not measured with is told so, and what the rule is taken over from.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE = "documentation/experiments.md"
STUDY = f"{PAGE}, 'The study so far'"
RATE = f"{PAGE}, 'A frozen encoder at the higher rate'"
LOOKS = f"{PAGE}, 'The weights that ship: first looks'"
VIEWS = f"{PAGE}, 'Frozen: the input's size and the number of stored views'"
COMPACT_CACHE = f"{PAGE}, 'Compact embedding caches'"
OTHER_SITES = f"{PAGE}, 'Trained on one site, tested on another'"
VOLUMES = f"{PAGE}, '3d_adapter against 3d_unet on Dataset001'"
AUTOSAM_HEADS = ("2d_linear", "2d_cnn", "2d_autosam")
"""Methods that AutoSAM's study speaks of."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the study found of a method on the small encoder with the weights that ship.

    Attributes:
        against_unet: how it stood, as the end of a sentence.
        trained_too: by what training the encoder too led with one labelled volume, as a part of a sentence.
        compared: where the comparison of the two is written down.
    """

    against_unet: str
    trained_too: str
    compared: str = STUDY


_STUDIED = {
    "2d_cnn": Measured(
        against_unet="it led a U-Net with one labelled volume of the heart, was level with five, and 5 "
        "points behind with five cases of each of two other sets",
        trained_too="that was 3 points better with one labelled volume, both at a rate of 1e-3,",
        compared=RATE,
    ),
    "2d_autosam": Measured(
        against_unet="it was level with a U-Net with one labelled volume of the heart and 5 points behind "
        "with five",
        trained_too="that, at twice the rate, was 4 points better with one labelled volume,",
    ),
}


def taken_over(method: str, *measured: str) -> str:
    """What to add to a rule for a method that it was not measured with; empty for one that it was."""
    return "" if method in measured else f"; taken over for {method}"


def own_weights_reason(method: str, encoder: str) -> str:
    """What is known of a method on a small encoder with weights that are not SAM's."""
    known = _STUDIED.get(method)
    told = (
        f"With the ones that ship, trained too, {known.against_unet} ({STUDY})."
        if known is not None
        else f"Not measured with {method}: that it stands below a U-Net is taken over from 2d_cnn and "
        f"2d_autosam ({STUDY})."
    )
    return f"The weights of {encoder} at hand are its own, not SAM's (their card says what made them). {told}"


def trained_too_reason(method: str, encoder: str) -> str:
    """Why a small encoder is trained with its head."""
    known = _STUDIED.get(method)
    told, where = "a rule taken over from 2d_cnn and 2d_autosam, not measured with this method", STUDY
    if known is not None:
        told, where = f"{known.trained_too} and not certainly with five", known.compared
    return f"{encoder} is trained too (--set encoder=frozen freezes it): {told} ({where})."


def frozen_rate_reason(method: str) -> str:
    """Why the head on a frozen small encoder learns at another rate than on SAM's own."""
    return (
        "The head has a learning rate of 1e-3 and a weight decay of 0.05, as where the encoder is trained "
        "too: with one labelled volume 2d_cnn was 3 points better so than with its own 5e-4 and 0.01, not "
        f"certainly with five{taken_over(method, '2d_cnn')} ({RATE})."
    )


def frozen_reason(method: str, encoder: str) -> str:
    """Why an encoder with SAM's weights is not trained."""
    return (
        f"{encoder} is frozen: AutoSAM's study has 67 mean Dice so and 37.8 fine-tuned as a whole (5 "
        f"labelled volumes, arXiv 2306.13731){taken_over(method, *AUTOSAM_HEADS)}. It gets no adapters: "
        "nothing measured speaks for them."
    )


def seeing_reason(method: str) -> str:
    """Why a head on a small encoder sees the picture."""
    return (
        "The head sees the picture too, not only its embedding (image_skip): 1 point, 8 on the demo's "
        f"phantom, one draw of 2d_cnn on a frozen encoder{taken_over(method, '2d_cnn')} ({LOOKS})."
    )


def small_size_reason(method: str) -> str:
    """Why an encoder without SAM's weights is given no more than twice the pixels of a slice."""
    return (
        "Wanted are 2 input pixels a slice pixel without SAM's weights. In ten minutes 2d_cnn on vit_tiny "
        f"was better at 224 pixels than at 448, one draw{taken_over(method, '2d_cnn')} ({STUDY}; "
        f"kept: {VIEWS}); longer trainings are not measured."
    )


def large_size_reason() -> str:
    """Why an encoder with SAM's weights is given more."""
    return "Wanted are 4 input pixels a slice pixel, about as AutoSAM enlarges; not measured here."


def views_reason(method: str, usual: int) -> str:
    """Why more views than usual are stored."""
    return (
        f"More views than the usual {usual}, for a head knows so few slices by heart otherwise: 1.5 points, "
        f"one draw of 2d_cnn on vit_tiny{taken_over(method, '2d_cnn')} ({VIEWS})."
    )


def compact_reason(method: str) -> str:
    """What eight bits a value cost."""
    return (
        f"It cost a trained 2d_desam on vit_tiny 0.05 points{taken_over(method, '2d_desam')} "
        f"({COMPACT_CACHE})."
    )


def smaller_cache_reason(storage: str, gigabytes: float) -> str:
    """What keeps a large cache small, and what is known of its price."""
    return (
        f"--set cache_storage={storage} would keep it in {gigabytes:.1f} GB; on vit_tiny that cost a trained "
        f"2d_desam 0.2 points [-0.6, +1.1] ({COMPACT_CACHE}), on SAM's encoders it is not measured."
    )


def volume_from_scratch_reason() -> str:
    """What a small encoder made 3D does without any weights."""
    return f"Begun so, it was 0.7 points behind 3d_unet on 140 hippocampi in two hours ({VOLUMES})."


def generalist_without_sam() -> str:
    """How 2d_desam does on another site without SAM's weights."""
    return (
        "On vit_tiny, with samunet's own weights, it was 8 points [1, 15] behind 2d_cnn on the prostate of "
        f"another site after half an hour of training, three seeds ({OTHER_SITES})."
    )
