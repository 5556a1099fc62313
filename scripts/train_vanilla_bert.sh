#!/usr/bin/env bash
# Pretrain a vanilla BERT, masked words and the order of sentences, with the baseline recipe of DeepScaleLM's authors.
#
#   scripts/train_vanilla_bert.sh DATA_BIN [fairseq-train flags]
#
# DATA_BIN is a folder of documents: preprocessing/wikipedia.py, or preprocessing/plays.py --documents. Your flags come
# last and win. Called again, it goes on from SAVE_DIR/checkpoint_last.pt. The warm-up is 1 % of --max-update.
# All weights begin with a standard deviation of 0.02, as in the recipe; at widths of a few hundred channels --dslm-init
# xavier is the fair comparison. Post-LN, or Pre-LN with --encoder-normalize-before.
#
#   SAVE_DIR=checkpoints/vanilla_bert   where checkpoints, train.log (JSON) and command.log go
#   ARCH=vanilla_bert            or vanilla_bert_12l, _48l, _96l, _192l, _768l, _tiny
#   SEQUENCES=256                sequences per update, whatever the number of processes
#   BATCH_SIZE=8                 sequences a process holds at once; --checkpoint-activations saves memory, too
#   NPROC=1                      processes on a machine without GPU
#   DRY_RUN=1                    only print the command
#
# Several GPUs, several machines, SLURM: as for scripts/train_alm.sh, see its head. On GPUs add --fp16 or --amp.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_bert.sh"

model_flags=(--dslm-init normal)
train_bert vanilla "${ARCH:-vanilla_bert}" "$@"
