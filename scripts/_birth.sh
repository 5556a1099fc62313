# shellcheck shell=bash
# What reproductions share that train many models on sequences with triggers, by scripts/train_birth.sh.  Source this
# file.
#
#   seeds=3 common=(FLAGS) runs=("NAME:SEEDS:SEQUENCES:UPDATES:SETTINGS:FLAGS" ...)   what is trained; NAME-1, NAME-2 ..
#   prepare DEFAULT TEXT "$@"     --help, --fresh; the folder $out, the corpus; with DRY_RUN=1 print the trainings, exit
#   text STEP; training STEP      make statistics and models that are not there yet; STEP as [1/4]
#   of NAME LABEL ...; draw NAME ANALYSIS "${of[@]}"   a figure of all seeds of some runs
#
# Read: OUT CORPUS SEED SEEDS MAX_UPDATE JOBS DRY_RUN, which the help of the scripts explains.
# shellcheck disable=SC2154  # seeds, common and runs are of the script that sources this
[[ -z ${CORPUS:-} || $CORPUS == /* ]] || CORPUS=$PWD/$CORPUS
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_steps.sh"

seed=${SEED:-0} longest=${MAX_UPDATE:-1001} jobs=${JOBS:-2}

# train FOLDER SEQUENCES UPDATES NUMBER SETTINGS FLAGS: and leave a mark when it is done.
# shellcheck disable=SC2329  # start calls it
train() {
    local settings flags number=$((seed + $4 - 1))
    read -ra settings <<<"$5"
    read -ra flags <<<"$6"
    relay env SAVE_DIR="$1" SEQUENCES="$2" ${settings[@]+"${settings[@]}"} \
        bash scripts/train_birth.sh "$corpus" "${common[@]}" --max-update "$3" --seed $((number + 1)) \
        --data-seed $((number + 42)) ${flags[@]+"${flags[@]}"}
    [[ ${DRY_RUN:-0} == 1 ]] || date -u >"$1/done"
}

# each_run COMMAND: call COMMAND NAME FOLDER SEQUENCES UPDATES NUMBER SETTINGS FLAGS for all runs and seeds.
each_run() {
    local run name count sequences updates settings flags number
    for run in "${runs[@]}"; do
        IFS=: read -r name count sequences updates settings flags <<<"$run"
        for ((number = 1; number <= (count < seeds ? count : seeds); number++)); do
            "$1" "$name-$number" "$out/$name-$number" "$sequences" "$((updates < longest ? updates : longest))" \
                "$number" "$settings" "$flags"
        done
    done
}

text() {
    begin "$1 statistics of the text"
    if [[ ${CORPUS:-} != *.json ]]; then
        made "$corpus" ${CORPUS:+"$CORPUS"} || start statistics python preprocessing/bigram_statistics.py \
            "${CORPUS:---plays}" --out "$corpus"
    fi
    finish
    end
}

# shellcheck disable=SC2329  # each_run calls it
train_next() {
    ! made "$2/done" "$corpus" || return 0
    began=1
    trainings=(${names[@]+"${names[@]}"} "$1")
    start "$1" train "${@:2}"
    finish training_progress $((jobs - 1))
}

training() {
    local began=0
    begin "$1 training, $jobs at a time"
    each_run train_next
    finish training_progress
    ((began == 0)) && [[ -s $out/trained ]] || date -u >"$out/trained"
    end
}

# shellcheck disable=SC2329  # each_run calls it
print_run() { train "${@:2}"; }

# of NAME LABEL...: set of to LABEL=FOLDER of all seeds of runs, given as pairs
of() {
    local folder
    of=()
    while (($#)); do
        for folder in "$out/$1"-[0-9]*; do of+=("$2=$folder"); done
        shift 2
    done
}

prepare() {
    local default=$1 about=$2 setting origin
    shift 2
    only_fresh "$@"
    for setting in SEEDS MAX_UPDATE JOBS; do check_number "$setting" "${!setting:-1}"; done
    [[ ${SEED:-0} =~ ^(0|[1-9][0-9]*)$ ]] || die "SEED is '$SEED', not a whole number of at least 0"
    [[ -z ${CORPUS:-} || (-f $CORPUS && -s $CORPUS) ]] ||
        die "CORPUS: $CORPUS is no file of text or statistics, or it is empty"
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        cd "$ROOT" || exit 1
        out=${OUT:-$default} corpus=${CORPUS:-$out/bigrams.json}
        each_run print_run
        exit
    fi
    say "$about"
    origin=plays # or a text with its checksum: it may change under its name
    [[ -z ${CORPUS:-} ]] || origin="$CORPUS (checksum $(cksum <"$CORPUS"))"
    open_folder "$default" "$origin $(printf '%q ' "$seed" "$seeds" "$longest" "${common[@]}" "${runs[@]}")"
    corpus=$out/bigrams.json
    [[ ${CORPUS:-} != *.json ]] || corpus=$CORPUS
}
