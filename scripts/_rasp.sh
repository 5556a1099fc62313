# shellcheck shell=bash
# What scripts share that train many transformers on formal languages, by scripts/train_rasp.sh.  Source this file.
#
#   runs=("NAME:SETTINGS:FLAGS" ...)   what is trained, into $out/NAME; SETTINGS as lang=reverse_26 layers=2
#   common=(FLAGS)                     of all of them
#   print_runs                         the commands of the trainings
#   train_runs                         the trainings that are not done, $jobs at a time
#
# Reproductions, with lengths 1 to 20 and a fifth of the samples:
#
#   plan NAME LANGUAGE LAYERS HEADS SEEDS FLAGS...   add to runs: NAME-1, NAME-2 ..; SEEDS as "1 2"
#   prepare DEFAULT TEXT "$@"          --help, --fresh; the folder $out; with DRY_RUN=1 print the trainings, exit
#   summarise; map NAME SEQUENCE       start: a table, $out/summary.md; heat maps of a model of the first seed, $out/maps
#
# A training that is done has left a file done in its folder.
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_steps.sh"

runs=() common=() jobs=${JOBS:-2}

# train FOLDER SETTINGS FLAGS: and leave a mark when it is done.
train() {
    local settings flags
    read -ra settings <<<"$2"
    read -ra flags <<<"$3"
    relay env SAVE_DIR="$1" "${settings[@]}" \
        bash scripts/train_rasp.sh ${flags[@]+"${flags[@]}"} ${common[@]+"${common[@]}"} || return
    [[ ${DRY_RUN:-0} == 1 ]] || date -u >"$1/done"
}

# each_run COMMAND: call COMMAND NAME FOLDER SETTINGS FLAGS for all runs.
each_run() {
    local run name settings flags
    for run in "${runs[@]}"; do
        IFS=: read -r name settings flags <<<"$run"
        "$1" "$name" "$out/$name" "$settings" "$flags"
    done
}

# shellcheck disable=SC2329  # each_run calls it
print_run() { train "${@:2}"; }
print_runs() {
    cd "$ROOT" || exit 1
    each_run print_run
}

# shellcheck disable=SC2329  # each_run calls it
train_next() {
    [[ ! -s $2/done ]] || return 0
    trainings=(${names[@]+"${names[@]}"} "$1")
    start "$1" train "${@:2}"
    finish training_progress $((jobs - 1))
}

train_runs() {
    begin "$1 training, $jobs at a time"
    each_run train_next
    finish training_progress
    end
}

plan() {
    local seed
    for seed in $5; do
        check_number "a seed of SEEDS" "$seed"
        runs+=("$1-$seed:lang=$2 layers=$3 heads=$4 dim=64 lr=0.001 gamma=0.98 epochs=15 SEED=$seed:${*:6}")
    done
}

prepare() {
    local default=$1 about=$2
    shift 2
    only_fresh "$@"
    check_number JOBS "$jobs"
    unset lang heads layers dim lr gamma position attn_c dropout reset_patience epochs batch_size subfolder small overfit \
        tinyset traincrop SEQUENCES BATCH_SIZE
    common=(--min-length 1 --max-length 20 --train-size 10000 --valid-size 500 --test-size 500 --cpu)
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        out=${OUT:-$default}
        print_runs
        exit
    fi
    say "$about"
    open_folder "$default" "$(printf '%q ' "${common[@]}" "${runs[@]}")"
}

summarise() {
    start summary python analysis/rasp/summary.py "$out" --out "$out/summary" --at-epoch 15 --group-epoch 15
}

map() {
    local first=${SEEDS:-1}
    start "map_$1" python analysis/rasp/heat_maps.py --path "$out/$1-${first%% *}" --sequence "$2" --out "$out/maps"
}
