#!/usr/bin/env bash
# Fine-tune a pretrained dslm_bert on RACE: which of four options answers a question about an article?
#
#   scripts/finetune_race.sh DATA PRETRAINED [fairseq-train flags]
#
# DATA is what preprocessing/race.py made, with the dictionary of the pretraining (--like). PRETRAINED is a checkpoint
# of scripts/train_dslm_bert.sh or train_vanilla_bert.sh, which also says the model's architecture and sizes, or the
# word none: random weights, with ARCH and the sizes among your flags. Your flags come last and win. Called again, it
# goes on from SAVE_DIR/checkpoint_last.pt. analysis/dslm/fine_tuning.py makes a table of the folders.
#
#   SAVE_DIR=checkpoints/finetune/RACE/lrLR_seedSEED  where checkpoints, train.log (JSON), command.log, finetune.json go
#   LR=2e-5          to be chosen among 1e-5 2e-5 3e-5 4e-5 5e-5 by the validation
#   SEED=1           of dropout, order and the new classification head; several are usual, five in the original
#   ARCH=dslm_bert   with PRETRAINED none
#   SEQUENCES=8      questions, each of four sequences, per update, whatever the number of processes
#   BATCH_SIZE       those that a process holds at once; default: its share of SEQUENCES
#   NPROC=1          processes on a machine without GPU
#   DRY_RUN=1        only print the command
#
# The recipe: 5 epochs (--max-epoch), from which the number of updates follows; the learning rate rises over the first
# 6 % of them and falls linearly to 0; up to 512 tokens, or as many as the checkpoint has positions. The best
# checkpoint is that of the accuracy on valid, all of dev; valid1 and valid2 are its questions for middle and for high
# school. It runs in float32; on GPUs --amp or --fp16 is faster (the original ran in bfloat16).
#
# Several GPUs, several machines, SLURM: as for scripts/train_alm.sh, see its head.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_finetune.sh"
finetune_dslm RACE 5 6 8 "$@"
