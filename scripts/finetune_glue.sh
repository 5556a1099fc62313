#!/usr/bin/env bash
# Fine-tune a masked language model on a sentence task, with fairseq's RoBERTa recipe for it.
#
#   scripts/finetune_glue.sh TASK DATA PRETRAINED [fairseq-train flags]
#
# TASK is MNLI, QNLI, QQP, SST-2, MRPC, CoLA, RTE or STS-B, or the task of any other folder that a script in
# preprocessing/ made, such as passages. DATA is the folder of that task, with the dictionary of the pretraining (--like).
# PRETRAINED is a checkpoint, which also says the model's architecture and sizes, or the word none: random weights, with
# ARCH and the sizes among your flags. Your flags come last and win. Called again, it goes on from
# SAVE_DIR/checkpoint_last.pt. analysis/transnormer/glue.py makes a table of the folders.
#
#   SAVE_DIR=checkpoints/glue/TASK/seedN  one for each model; where checkpoints, train.log (JSON), command.log and finetune.json go
#   SEED=1                       of dropout, order and the new classification head
#   ARCH=roberta_transnormer_t2  with PRETRAINED none
#   SEQUENCES=16 (QNLI, QQP, MNLI, SST-2: 32)   examples per update, whatever the number of processes
#   BATCH_SIZE                   examples a process holds at once; default: its share of SEQUENCES
#   NPROC=1                      processes on a machine without GPU
#   DRY_RUN=1                    only print the command
#
# The recipe is that of fairseq's examples/roberta/config/finetuning in float32, without its limit of 4400 tokens a
# batch, which makes some batches smaller. Longer examples are cut. The best checkpoint is that of the task's metric on
# the split valid; MNLI is also validated on valid1, its mismatched set. --max-positions is of the model as well as of
# the examples, so it cannot be less than the checkpoint's.
#
# Several GPUs, several machines, SLURM: as for scripts/train_alm.sh, see its head.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_finetune.sh"

case ${1:---help} in
    -h | --help) usage && exit ;;
esac
(($# >= 3)) || die "give a task, its data folder and a checkpoint or 'none': $0 TASK DATA PRETRAINED [fairseq-train flags]"
about_task "$1" "$2" "$3" roberta_transnormer_t2 "${@:4}"
shift 3

# learning rate, examples per update, updates, warm-up updates
case $task in
    MNLI) numbers=(1e-5 32 123873 7432) ;;
    QNLI) numbers=(1e-5 32 33112 1986) ;;
    QQP) numbers=(1e-5 32 113272 28318) ;;
    SST-2) numbers=(1e-5 32 20935 1256) ;;
    MRPC) numbers=(1e-5 16 2296 137) ;;
    CoLA) numbers=(1e-5 16 5336 320) ;;
    STS-B) numbers=(2e-5 16 3598 214) ;;
    *) numbers=(2e-5 16 2036 122) ;; # RTE
esac
max_update=$(flag --max-update "${numbers[2]}" "$@")
seed=$(flag --seed "${SEED:-1}" "$@")
cut=(--shorten-method truncate)
[[ " ${flags[*]} " != *" --task dslm_"* ]] || cut=() # folders of preprocessing/glue.py --dslm: that task always cuts
recipe=(
    --max-positions 512 ${cut[@]+"${cut[@]}"} --valid-subset "$subsets"
    "${flags[@]}" --dropout 0.1 --attention-dropout 0.1
    --optimizer adam --adam-betas "(0.9, 0.98)" --adam-eps 1e-06 --weight-decay 0.1 --clip-norm 0.0
    --lr "${numbers[0]}" --lr-scheduler polynomial_decay --power 1 --end-learning-rate 0
    --warmup-updates "${numbers[3]}" --max-update "$max_update" --total-num-update "$max_update" --max-epoch 10
    --seed "$seed" --best-checkpoint-metric "$metric" --maximize-best-checkpoint-metric --no-epoch-checkpoints
    --find-unused-parameters # the head of the masked language model
)
finetune "checkpoints/glue/$task/seed$seed" "${numbers[1]}" "$@"
