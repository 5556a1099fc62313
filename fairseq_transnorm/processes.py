"""Training in several processes: runs that go on, and metrics of predictions, which fairseq has for one process only.

Four functions of fairseq are replaced when the package is imported (read in ve-fairseq 0.12.3):

* ``_broadcast_object_slow`` of ``fairseq.distributed``. The first process reads a checkpoint and sends it to the
  others, which read it with torch's safe loader; since torch 2.6 that refuses the config in it, so that no such run
  could go on or be fine-tuned. Here torch sends objects of our own processes in its own way.
* ``SentencePredictionCriterion.logging_outputs_can_be_summed``. It says yes for lists of predictions too, which cannot
  be summed: the first validation by F1 or a correlation failed.
* ``all_gather_list`` of ``fairseq.distributed``, by which such lists are gathered. It needs a GPU; here not.
* ``Trainer.train_step``. At the end of an epoch one process may have fewer micro-batches (``--update-freq``) than the
  others, and gets an empty one. Then all that it had in this update was left out of the counts, but not of the
  gradient, which became too large, and out of the log. Here it is updated with those that it has.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from fairseq.utils import move_to_cpu

_fairseq_gather = distributed_utils.all_gather_list
_fairseq_train_step = Trainer.train_step


def broadcast_object(obj: Any, src_rank: int, group: Any, dist_device: torch.device) -> Any:
    """Return the object of process ``src_rank`` in all processes of a group."""
    objects = [obj]
    torch.distributed.broadcast_object_list(objects, src=src_rank, group=group, device=dist_device)
    return objects[0]


@wraps(_fairseq_gather)
def all_gather_list(data: Any, group: Any = None, max_size: int = 16384) -> list[Any]:
    """Return the data of all processes of a group, in the order of their ranks."""
    if torch.cuda.is_available():
        return _fairseq_gather(data, group, max_size)
    group = distributed_utils.get_global_group() if group is None else group
    gathered: list[Any] = [None] * distributed_utils.get_world_size(group)
    torch.distributed.all_gather_object(gathered, move_to_cpu(data), group=group)
    return gathered


def logging_outputs_can_be_summed(self: SentencePredictionCriterion) -> bool:
    """Return whether the criterion logs sums only, no predictions."""
    return not self.keep_pred_and_targ


@wraps(_fairseq_train_step)
def train_step(self: Trainer, samples: list[Any], *args: Any, **kwargs: Any) -> Any:
    """Make an update as fairseq does, from the micro-batches that are not empty; from an empty one if all are."""
    return _fairseq_train_step(self, [sample for sample in samples if sample] or samples, *args, **kwargs)


def mend() -> None:
    """Replace the functions of fairseq; a second call changes nothing."""
    distributed_utils._broadcast_object_slow = broadcast_object
    distributed_utils.all_gather_list = all_gather_list
    Trainer.train_step = train_step
    SentencePredictionCriterion.logging_outputs_can_be_summed = logging_outputs_can_be_summed
