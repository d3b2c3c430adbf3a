"""A generated body: labelled abdominal MR-like volumes, written as a raw dataset. Nothing is downloaded.

The anatomy is implicit functions of the position in millimetres (x to the patient's left, y to the back, z to
the head), bent by a smooth random field, so that no two cases are alike. Labelled are five organs; vena cava,
stomach, bowel, psoas, body wall and spine are unlabelled tissue of about the same grey. Under noise, texture
and a bias field a voxel's intensity therefore says little about its organ (tests/pipeline/test_phantom.py
measures how little), while place, shape and borders do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from samunet.data.geometry import Geometry
from samunet.errors import SamunetError
from samunet.records import write_json
from samunet.workspace import DATASET_FILE

PHANTOM_DATASET = "Dataset900_Phantom"
ORGANS = ("liver", "spleen", "aorta", "kidney_right", "kidney_left")
FILE_ENDING = ".nii.gz"

# Mean signal of each tissue relative to bright fat, before texture, noise and bias. The soft tissues are
# close together on purpose: their differences are of the size of one case's texture and bias.
_SIGNAL = {
    "air": 0.03,
    "fat": 0.92,
    "wall": 0.50,
    "psoas": 0.47,
    "vertebra": 0.64,
    "canal": 0.36,
    "stomach": 0.52,
    "bowel": 0.55,
    "cava": 0.57,
    "liver": 0.58,
    "spleen": 0.49,
    "aorta": 0.47,
    "kidney_right": 0.53,
    "kidney_left": 0.53,
}
_TISSUES = tuple(_SIGNAL)


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """Size of the volumes and strength of what makes them hard.

    Attributes:
        shape: voxels along z, y, x of an average case.
        spacing_mm: voxel size along z, y, x of an average case; a case differs by up to 6 %.
        noise: standard deviation of the noise relative to bright fat.
        texture: standard deviation of the tissues' own mottling.
        bias: largest exponent of the multiplicative bias field.
        variation: scale of all random anatomy; 0 gives one body for all.
    """

    shape: tuple[int, int, int] = (20, 64, 80)
    spacing_mm: tuple[float, float, float] = (6.0, 4.5, 4.5)
    noise: float = 0.05
    texture: float = 0.035
    bias: float = 0.22
    variation: float = 1.0


@dataclass(frozen=True)
class PhantomCase:
    """One generated volume: `image` int16 and `label` uint8 (index in ORGANS plus one), both (Z, Y, X)."""

    image: np.ndarray
    label: np.ndarray
    geometry: Geometry


class _Body:
    """Builds one body: positions in millimetres and draws that all its organs share."""

    def __init__(self, geometry: Geometry, settings: PhantomSettings, generator: np.random.Generator) -> None:
        self.shape = geometry.shape
        self.generator = generator
        self.variation = settings.variation
        axes = [
            (np.arange(n) - (n - 1) / 2) * spacing for n, spacing in zip(geometry.shape, geometry.spacing_mm)
        ]
        z, y, x = np.meshgrid(*axes, indexing="ij")
        z = z + self.draw(8.0)
        turn = np.deg2rad(self.draw(6.0))
        x, y = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
        stretch = np.exp(self.draw(0.06)), np.exp(self.draw(0.06))
        # The smooth displacement bends organs together, as breathing and posture do.
        self.x = (x + self.draw(10.0)) * stretch[0] + self.smooth_field(7.0)
        self.y = (y + self.draw(10.0)) * stretch[1] + self.smooth_field(7.0)
        self.z = z + self.smooth_field(5.0)

    def draw(self, spread: float) -> float:
        """A normal draw of that standard deviation, kept within two of them."""
        return float(np.clip(self.generator.normal(), -2, 2)) * spread * self.variation

    def smooth_field(self, spread: float) -> np.ndarray:
        """Random field over the volume, smooth over about a quarter of its extent."""
        coarse = self.generator.normal(size=(3, 5, 5))
        field = zoom(coarse, [n / c for n, c in zip(self.shape, coarse.shape)], order=3, mode="nearest")
        return field * (spread * self.variation)

    def ellipsoid(
        self, centre_xyz: tuple[float, float, float], radii_xyz: tuple[float, float, float], move: float = 6.0
    ) -> np.ndarray:
        """Level of an ellipsoid: below 1 inside. Its place moves by `move` mm, its size by a tenth."""
        size = np.exp(self.draw(0.10))
        total = np.zeros(self.shape)
        for position, centre, radius in zip((self.x, self.y, self.z), centre_xyz, radii_xyz):
            stretched = radius * size * np.exp(self.draw(0.05))
            total += ((position - centre - self.draw(move)) / stretched) ** 2
        return np.sqrt(total)

    def tube(self, centre_xy: tuple[float, float], radius: float, sway: float = 7.0) -> np.ndarray:
        """Level of a winding tube along z: below 1 inside."""
        phase, period = self.generator.uniform(0, 2 * np.pi, 2), 90.0 + self.draw(15.0)
        x = centre_xy[0] + self.draw(8.0) + sway * np.sin(2 * np.pi * self.z / period + phase[0])
        y = centre_xy[1] + self.draw(4.0) + 0.4 * sway * np.sin(2 * np.pi * self.z / period + phase[1])
        wide = radius * np.exp(self.draw(0.08)) * (1 + 0.12 * np.sin(self.z / 35.0 + phase[1]))
        return np.hypot(self.x - x, self.y - y) / wide


def _build_tissues(body: _Body) -> np.ndarray:
    """Index in _TISSUES of every voxel; later organs push earlier ones aside."""
    tissues = np.zeros(body.shape, np.uint8)

    def paint(name: str, mask: np.ndarray) -> None:
        tissues[mask] = _TISSUES.index(name)

    skin = (np.abs(body.x / 168) ** 2.4 + np.abs(body.y / 128) ** 2.4) ** (1 / 2.4)
    skin = skin * np.exp(body.draw(0.04))
    fat_depth = 0.07 + abs(body.draw(0.02))
    inside = skin < 1 - fat_depth - 0.075
    paint("fat", skin < 1)
    paint("wall", (skin < 1 - fat_depth) & ~inside)
    paint("fat", inside)
    for _ in range(14):
        centre = body.generator.uniform((-80, -85, -75), (90, 15, -5))
        radii = body.generator.uniform(13, 26, 3)
        paint("bowel", inside & (body.ellipsoid(tuple(centre), tuple(radii)) < 1))
    for side in (-1, 1):
        paint("psoas", inside & (body.ellipsoid((side * 40.0, 74.0, -30.0), (17, 19, 60)) < 1))
    paint("stomach", inside & (body.ellipsoid((48, -38, 28), (44, 36, 42)) < 1))
    spleen = body.ellipsoid((100, 20, 18), (40, 58, 52))
    paint("spleen", inside & (spleen < 1) & (body.ellipsoid((60, -2, 22), (32, 32, 60)) > 1))
    right_lobe = body.ellipsoid((-80, -8, 18), (64, 76, 62))
    left_lobe = body.ellipsoid((-18, -58, 26), (58, 32, 36))
    paint("liver", inside & (np.minimum(right_lobe, left_lobe) < 1))
    for name, side, height in (("kidney_right", -1, -26.0), ("kidney_left", 1, -12.0)):
        capsule = body.ellipsoid((side * 66.0, 58.0, height), (33, 37, 54))
        sinus = body.ellipsoid((side * 42.0, 52.0, height), (15, 14, 18), move=3.0)
        paint("fat", inside & (capsule < 1.13))
        paint(name, inside & (capsule < 1) & (sinus > 1))
    paint("vertebra", body.tube((0, 84), 26, sway=2.0) < 1)
    paint("canal", body.ellipsoid((0, 112, 0), (9, 8, 400), move=2.0) < 1)
    paint("cava", body.tube((-24, 44), 13) < 1)
    paint("aorta", body.tube((16, 44), 19) < 1)
    return tissues


def _paint_image(
    tissues: np.ndarray, settings: PhantomSettings, generator: np.random.Generator
) -> np.ndarray:
    """Magnitude image of the tissues: own grey per case, mottling, partial volume, bias, noise."""
    signal = np.array([_SIGNAL[name] * np.exp(0.06 * generator.normal()) for name in _TISSUES])
    image = signal[tissues]
    soft = tissues > _TISSUES.index("air")
    for width in (0.8, 2.0, 6.0):
        mottling = gaussian_filter(generator.normal(size=image.shape), (width / 2, width, width))
        image = image + soft * mottling / mottling.std() * settings.texture / np.sqrt(2)
    image = gaussian_filter(image, (0.35, 0.6, 0.6))
    coarse = generator.normal(size=(2, 3, 3))
    field = zoom(coarse, [n / c for n, c in zip(image.shape, coarse.shape)], order=3, mode="nearest")
    image = image * np.exp(settings.bias * field / np.abs(field).max())
    real = image + settings.noise * generator.normal(size=image.shape)
    imaginary = settings.noise * generator.normal(size=image.shape)
    gain = 900 * np.exp(0.2 * generator.normal())  # MR has no unit: the scanner's gain differs by case
    return np.rint(gain * np.hypot(real, imaginary)).astype(np.int16)


def generate_case(settings: PhantomSettings, generator: np.random.Generator) -> PhantomCase:
    """Draw one body.

    Args:
        settings: size and difficulty.
        generator: the only source of randomness; two generators of one seed give the same case.
    """
    stretch = np.exp(generator.uniform(-0.06, 0.06, 2))
    spacing = tuple(float(round(s * f, 3)) for s, f in zip(settings.spacing_mm, stretch[[0, 1, 1]]))
    slices = max(4, settings.shape[0] + int(generator.integers(-2, 3)))
    geometry = Geometry(
        shape=(slices, settings.shape[1], settings.shape[2]),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        origin_mm=tuple(generator.uniform(-200, 200, 3).round(2).tolist()),
    )
    tissues = _build_tissues(_Body(geometry, settings, generator))
    values = np.array([ORGANS.index(name) + 1 if name in ORGANS else 0 for name in _TISSUES], np.uint8)
    return PhantomCase(_paint_image(tissues, settings, generator), values[tissues], geometry)


def write_phantom_dataset(
    folder: Path,
    *,
    num_training: int = 20,
    num_test: int = 6,
    seed: int = 0,
    settings: PhantomSettings | None = None,
) -> Path:
    """Write a raw dataset: imagesTr, labelsTr, imagesTs, labelsTs and dataset.json.

    Args:
        folder: the dataset's folder; its name is usually PHANTOM_DATASET.
        num_training: cases to train on.
        num_test: held-out cases, drawn after the training cases from the same distribution.
        seed: gives the same files every time.
        settings: None takes the defaults.

    Raises:
        SamunetError: the folder holds files already.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise SamunetError(f"{folder} is not empty; name a new folder or delete it.")
    # First, so that a folder that was left half full is known for what it is.
    write_json(
        folder / DATASET_FILE,
        {
            "name": "Phantom",
            "description": f"generated by samunet, seed {seed}; no patient",
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **{name: i + 1 for i, name in enumerate(ORGANS)}},
            "numTraining": num_training,
            "file_ending": FILE_ENDING,
        },
    )
    for index in range(num_training + num_test):
        part = "Tr" if index < num_training else "Ts"
        case = generate_case(settings or PhantomSettings(), np.random.default_rng([seed, index]))
        name = f"phantom_{index:03d}"
        _write_volume(case.image, case.geometry, folder / f"images{part}" / f"{name}_0000{FILE_ENDING}")
        _write_volume(case.label, case.geometry, folder / f"labels{part}" / f"{name}{FILE_ENDING}")
    return folder


def _write_volume(array: np.ndarray, geometry: Geometry, path: Path) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_mm)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)
