#!/usr/bin/env bash
# Pretrain DeepScaleLM's BERT, masked words and the order of sentences, with the recipe of the vanilla one.
#
#   scripts/train_dslm_bert.sh DATA_BIN [fairseq-train flags]
#
# DATA_BIN is a folder of documents: preprocessing/wikipedia.py, or preprocessing/plays.py --documents. Your flags come
# last and win. Called again, it goes on from SAVE_DIR/checkpoint_last.pt. The warm-up is 1 % of --max-update.
# The learning rate must fall with depth: try --lr 3e-5 and 1e-5 beyond 100 layers. Pre-LN: --encoder-normalize-before.
#
#   SAVE_DIR=checkpoints/dslm_bert   where checkpoints, train.log (JSON) and command.log go
#   ARCH=dslm_bert               or dslm_bert_12l, _48l, _96l, _192l, _768l, _tiny
#   SEQUENCES=256                sequences per update, whatever the number of processes
#   BATCH_SIZE=8                 sequences a process holds at once; --checkpoint-activations saves memory, too
#   NPROC=1                      processes on a machine without GPU
#   DRY_RUN=1                    only print the command
#
# Several GPUs, several machines, SLURM: as for scripts/train_alm.sh, see its head. On GPUs add --fp16 or --amp.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_bert.sh"

model_flags=()
train_bert dslm "${ARCH:-dslm_bert}" "$@"
