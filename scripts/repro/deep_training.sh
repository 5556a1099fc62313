#!/usr/bin/env bash
# Does a very deep BERT learn? DeepScaleLM and the vanilla transformer with 96 layers, Post-LN and Pre-LN.
#
#   bash scripts/repro/deep_training.sh [--fresh]
#
# Makes .venv first where it is missing. All models learn the same topic language (64 words in 8 topics, sequences of 16
# words of one topic) for 120 updates with the same settings, differing only in initial weights and residual weights.
# A model that has learnt the topics has a loss of ln 8 = 2.08 nats, one that guesses ln 64 = 4.16. Everything goes to
# outputs/deep_training/; learning_curves.png and the table at the end are what to read. Called again, it keeps what is finished.
#
#   --fresh                    remove outputs/deep_training/ first
#   OUT=outputs/deep_training  another folder
#   LAYERS=96 WIDTH=64 HEADS=2 of the models
#   LR=3e-4                    must fall with depth: 2e-4 for 192 layers
#   MAX_UPDATE=120             updates of 16 sequences each
#   SEEDS="1"                  of initial weights, order and masks
#   NO_VENV=1                  use the environment that is active instead of .venv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../_steps.sh"

layers=${LAYERS:-96} width=${WIDTH:-64} heads=${HEADS:-2} updates=${MAX_UPDATE:-120} rate=${LR:-3e-4}
sequences=16
common=(--cpu --no-progress-bar --log-interval 5 --masked-lm-only --max-ngram 1 --short-seq-prob 0
    --tokens-per-sample 18 --max-positions 18 --num-segments 0 --encoder-layers "$layers" --encoder-embed-dim "$width"
    --encoder-attention-heads "$heads" --dropout 0 --attention-dropout 0 --lr "$rate" --warmup-updates "$((updates / 12))"
    --max-update "$updates" --save-interval-updates "$(((updates + 3) / 4))")
# variant: script, flags of its own
variants=("DSLM Post-LN:dslm:" "DSLM Pre-LN:dslm:--encoder-normalize-before" "Xavier Post-LN:vanilla:--dslm-init xavier"
    "Xavier Pre-LN:vanilla:--dslm-init xavier --encoder-normalize-before")

folder_of() { local name=${1,,}; echo "$out/${name// /-}-$2"; }

# train SCRIPT FOLDER SEED FLAGS...: until this process ends.
# shellcheck disable=SC2329  # start calls it
train() {
    SAVE_DIR=$2 SEQUENCES=$sequences BATCH_SIZE=$sequences \
        exec bash "scripts/train_$1_bert.sh" "$out/topics" "${common[@]}" --seed "$3" "${@:4}"
}

main() {
    local seed variant name script folder runs=() flags
    read -ra seeds <<<"${SEEDS:-1}"
    only_fresh "$@"
    check_number MAX_UPDATE "$updates"
    for seed in "${seeds[@]}"; do check_number SEEDS "$seed"; done
    say "Deep training: $layers layers of $width channels, $updates updates; about 2 minutes a seed on 2 cores."
    open_folder outputs/deep_training "$(printf '%q ' "${common[@]}")"
    begin "[1/3] text: the topic language, a new sequence for each place in each batch"
    made "$out/topics/tokenizer.json" ||
        start topics python preprocessing/topics.py --out "$out/topics" --train $((sequences * updates)) --valid 512
    finish
    end
    for seed in "${seeds[@]}"; do
        begin "[2/3] training, seed $seed"
        for variant in "${variants[@]}"; do
            IFS=: read -r name script flags <<<"$variant"
            folder=$(folder_of "$name" "$seed")
            runs+=("$name=$folder/train.log")
            ! made "$folder/done" "$out/topics/tokenizer.json" || continue
            read -ra flags <<<"$flags"
            trainings=("${names[@]}" "${folder##*/}")
            start "${folder##*/}" train "$script" "$folder" "$seed" ${flags[@]+"${flags[@]}"}
            finish training_progress 1 # two at a time
        done
        finish training_progress
        for variant in "${variants[@]}"; do date -u >"$(folder_of "${variant%%:*}" "$seed")/done"; done
        end
    done
    begin '[3/3] curves'
    start learning_curves python analysis/learning_curves.py --out "$out/learning_curves" "${runs[@]}"
    finish
    end
    cat "$out/logs/learning_curves.log"
    say "All of it is in $out/."
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
