"""The import of segment_anything's modules without torchvision."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import copy, pickle, sys, types
sys.modules["torchvision"] = None  # cannot be imported

from samunet.networks.sam.package import modeling
assert modeling.ImageEncoderViT.__module__ == "segment_anything.modeling.image_encoder"
layer = modeling.TwoWayTransformer(1, 8, 1, 8)
pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)

import segment_anything  # an import that fails says why and can be repeated
for _ in range(2):
    try:
        segment_anything.SamPredictor
    except ImportError as error:
        assert "torchvision" in str(error)
    else:
        raise AssertionError

names = {  # once there is a torchvision, the rest of the package is loaded on demand
    "torchvision": (), "torchvision.ops": (), "torchvision.transforms": (),
    "torchvision.ops.boxes": ("batched_nms", "box_area"),
    "torchvision.transforms.functional": ("resize", "to_pil_image"),
}
for name, members in names.items():
    sys.modules[name] = types.ModuleType(name)
    for member in members:
        setattr(sys.modules[name], member, None)
assert segment_anything.SamPredictor is not None
assert segment_anything.modeling is modeling
"""


def test_modeling_needs_no_torchvision_and_the_rest_comes_on_demand() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
