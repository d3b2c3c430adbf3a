"""Learning from a larger SAM: its embedding of the same picture, predicted from the small one's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.networks.sam.encoder import SamImageEncoder

EPSILON = 1e-6


class EmbeddingMatch(nn.Module):
    """A linear layer from the student's channels to the teacher's, and the share that it leaves unexplained.

    The layer is thrown away with the other heads: the student's neck keeps its own width.

    Args:
        student / teacher: channels of the two embeddings.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.to_teacher = nn.Conv2d(student, teacher, 1)

    def forward(self, embedding: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
        """Mean squared error over the teacher's variance: 1 for its mean embedding, 0 for its own.

        Args:
            embedding: (B, E, g, g) of the student.
            wanted: (B, T, h, h) of the teacher; resized to g x g.
            real: (B, g, g) boolean, tokens that hold a part of the picture; the others do not count.
        """
        target = functional.interpolate(
            wanted.float(), embedding.shape[-2:], mode="bilinear", align_corners=False, antialias=True
        )
        found = self.to_teacher(embedding).float()
        each = real[:, None] / real.sum()
        center = (target * each).sum((0, 2, 3), keepdim=True)
        variance, error = (
            ((target - other).square() * each).sum((0, 2, 3)).mean() for other in (center, found)
        )
        return error / (variance + EPSILON)


@torch.no_grad()
def teacher_embedding(encoder: SamImageEncoder, picture: Tensor) -> Tensor:
    """What a frozen encoder says of pictures (B, 3, S, S), normalised, enlarged to its input size."""
    size = (encoder.img_size, encoder.img_size)
    if picture.shape[-2:] != size:
        picture = functional.interpolate(
            picture, size, mode="bilinear", align_corners=False, antialias=picture.shape[-1] > size[0]
        )
    return encoder(picture)
