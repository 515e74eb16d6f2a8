"""The losses: of an evaluation, as the network's runner computes it, and of training, as published."""

import torch.nn.functional as F
from torch import Tensor, arange

from .config import V1_PAD_TOKEN_ID
from .model import Model
from .sig_reg import SIGReg


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """`-log_softmax(logits)[target]` of every token in nats; 0 for PAD targets. [N, V], int64 [N] -> [N].

    Evaluation divides their sum by the number of *all* tokens, PAD among them. This looks like a bug upstream, and is
    kept: the published Python package divides by those that are not PAD, and so reports larger losses.
    """
    return F.cross_entropy(logits, targets, ignore_index=V1_PAD_TOKEN_ID, reduction="none")  # (N)


def compute_loss(model: Model, sig_reg: SIGReg, token_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss (a scalar) and the mean representation [D]; token ids and targets are int [B, T].

    The meaning is that of the published reference, `soma_models.v1.torch.compute_loss`, which is *not* the
    loss of an evaluation: positions count from 0 in every sequence, the cross-entropy is divided by the
    number of targets that are not PAD, and the noise is torch's. `ModelRunner.eval` gives the network's.
    """
    B, T = token_ids.shape
    positions = arange(T, device=token_ids.device).expand(B, T)
    representations = model.encode(token_ids, positions)  # (B, T, D)
    logits = model.predict(representations)  # (B, T, V)
    cross_entropy = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten().long(), ignore_index=V1_PAD_TOKEN_ID
    )
    embedding = representations.mean(dim=1).mean(dim=0)  # (D)
    return cross_entropy + sig_reg(representations), embedding
