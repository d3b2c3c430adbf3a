"""The import of segment_anything's modules without torchvision."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run(code: str) -> None:
    """Run code in a fresh interpreter in which torchvision cannot be imported."""
    block = "import sys\nsys.modules['torchvision'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", block + textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_modeling_needs_no_torchvision() -> None:
    run(
        """
        from samunet.networks.sam.package import modeling
        assert modeling.ImageEncoderViT.__module__ == "segment_anything.modeling.image_encoder"
        import copy, pickle
        layer = modeling.TwoWayTransformer(1, 8, 1, 8)
        pickle.loads(pickle.dumps(layer)); copy.deepcopy(layer)
        """
    )


def test_the_rest_of_the_package_is_loaded_on_demand() -> None:
    run(
        """
        from samunet.networks.sam.package import modeling
        import types
        vision = types.ModuleType("torchvision")
        names = ["ops", "ops.boxes", "transforms", "transforms.functional"]
        for name in names:
            sys.modules["torchvision." + name] = types.ModuleType("torchvision." + name)
        for name in ("batched_nms", "box_area"):
            setattr(sys.modules["torchvision.ops.boxes"], name, None)
        for name in ("resize", "to_pil_image"):
            setattr(sys.modules["torchvision.transforms.functional"], name, None)
        sys.modules["torchvision"] = vision
        import segment_anything
        assert segment_anything.SamPredictor is not None
        assert segment_anything.modeling is modeling
        """
    )


def test_an_import_that_fails_says_why_and_can_be_repeated() -> None:
    run(
        """
        from samunet.networks.sam.package import modeling
        import segment_anything
        for _ in range(2):
            try:
                segment_anything.SamPredictor
            except ImportError as error:
                assert "torchvision" in str(error)
            else:
                raise AssertionError
        """
    )
