# shellcheck shell=bash
# What scripts of several steps share: steps in the background with a log each, kept results, going on after an
# interrupt.
# Source _env.sh, _run.sh and this file. SOURCE, a file of the user's, becomes absolute.
#
#   only_fresh "$@"                          --help, or read --fresh, the only argument there may be
#   open_folder DEFAULT SETTINGS             environment, folder $out, lock; refuse a folder of other settings
#   begin TEXT; start NAME COMMAND...; finish [PROGRESS [LEFT]]; end [TEXT]
#   made FILE SOURCE... || start ...         only what is not there yet
#   draw NAME ANALYSIS ARGS...               a figure of the trained models; noted NAME COMMAND..., report_missed
#   compare NUMBER SYSTEM ARGS...            the phenomena, at the end

[[ -z ${SOURCE:-} || $SOURCE == /* ]] || SOURCE=$PWD/$SOURCE

say() { printf '%s\n' "$*"; }
clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# made FILE SOURCE...: is FILE there and newer than what it was made of?
made() {
    local file=$1 source
    shift
    [[ -s $file ]] || return 1
    for source; do [[ ! $source -nt $file ]] || return 1; done
}

pids=() names=() trainings=()

# start NAME COMMAND...: begin a step; its output goes to logs/NAME.log.
start() {
    local name=$1
    shift
    "$@" >"$out/logs/$name.log" 2>&1 </dev/null &
    pids+=($!)
    names+=("$name")
}

# relay COMMAND...: run it for a function that is a step and has more to do; a shell that waits for what it runs in front
# would die of a signal and leave that behind.
relay() {
    local status=0
    "$@" &
    # shellcheck disable=SC2064  # of now
    trap "kill $! 2>/dev/null || true" INT TERM
    wait $! || status=$?
    while kill -0 $! 2>/dev/null; do wait $! || true; done # a signal ends a wait before its end
    return "$status"
}

# into FILE COMMAND...: what it prints, whole or not at all; its errors go to the log of the step.
# shellcheck disable=SC2329  # start calls it
into() {
    local file=$1
    shift
    relay "$@" >"$file.tmp" && mv "$file.tmp" "$file"
}

stop_steps() {
    ((${#pids[@]})) || return 0
    kill "${pids[@]}" 2>/dev/null || true # TERM: a shell's background processes ignore INT
    wait "${pids[@]}" 2>/dev/null || true
}

# shellcheck disable=SC2329  # the traps call it
interrupted() {
    trap - INT TERM
    stop_steps
    say "interrupted; call again to go on from here" >&2
    exit "$1"
}

# finish [PROGRESS [LEFT]]: wait until no more than LEFT (0) of the steps that were started run; every 20 seconds call
# PROGRESS.
# shellcheck disable=SC2120  # scripts that source this give arguments
finish() {
    local i status most=${2:-0} still rest_of last=$SECONDS
    while ((${#pids[@]} > most)); do
        sleep 0.5
        still=() rest_of=()
        for i in "${!pids[@]}"; do
            if kill -0 "${pids[i]}" 2>/dev/null; then
                still+=("${pids[i]}")
                rest_of+=("${names[i]}")
                continue
            fi
            status=0
            wait "${pids[i]}" || status=$?
            ((status == 0)) || failed "${names[i]}" "$status"
        done
        pids=(${still[@]+"${still[@]}"}) names=(${rest_of[@]+"${rest_of[@]}"})
        if (($# && SECONDS - last >= 20)); then
            last=$SECONDS
            "$1"
        fi
    done
}

failed() {
    local log=$out/logs/$1.log
    stop_steps
    say "error: the step '$1' failed with status $2. The end of $log:" >&2
    tail -n 15 "$log" | cut -c 1-300 | sed 's/^/    | /' >&2
    say "       Once that is mended, call again: finished steps are kept. $0 --fresh begins anew." >&2
    exit 1
}

# begin TEXT / end [TEXT]: what a step does and how long it took.
begin() {
    step_started=$SECONDS
    printf '%s ...\n' "$1"
}
end() { say "  $(clock $((SECONDS - step_started)))  ${1:-done}"; }
reuse() { say "$1: kept from before"; }

# training_progress: updates and perplexities (or losses) of the save folders below $out that the array trainings names.
# shellcheck disable=SC2329  # finish calls it
training_progress() {
    local name line text='' number='"num_updates": "([0-9]+)"' ppl='"(ppl)": "([^"]+)"' loss='"(loss)": "([^"]+)"'
    for name in "${trainings[@]}"; do
        line=$(grep '"num_updates"' "$out/$name/train.log" 2>/dev/null | tail -n 1) || true
        text+=${text:+ | }$name:
        if [[ $line =~ $number ]]; then
            text+=" update ${BASH_REMATCH[1]}"
            if [[ $line =~ $ppl || $line =~ $loss ]]; then text+=", ${BASH_REMATCH[1]} ${BASH_REMATCH[2]}"; fi
        else
            text+=" starting"
        fi
    done
    say "  $(clock $((SECONDS - step_started)))  $text"
}

# draw NAME ANALYSIS ARGS...: a figure, unless it is newer than all trainings ($out/trained). That it misses what is
# known is noted.
draw() {
    local name=$1
    # shellcheck disable=SC2154  # seed is of the script that sources this
    made "$out/$name.json" "$out/trained" || start "$name" noted "$name" \
        python "analysis/$2.py" --out "$out/$name" --seed "$seed" "${@:3}"
}

# noted NAME COMMAND...: take its status 3 for a success, and note it in $out/NAME.missed.
# shellcheck disable=SC2329  # start calls it
noted() {
    local name=$1 status=0
    shift
    rm -f "$out/$name.missed"
    relay "$@" || status=$?
    ((status != 3)) || { date -u >"$out/$name.missed" && status=0; }
    return "$status"
}

# report_missed: say where all is; status 3, with their names, if steps missed what is known.
report_missed() {
    local missed
    say "All of it is in $out/."
    missed=$(cd "$out" && ls -- *.missed 2>/dev/null) || return 0
    say "Something differs from what is known; see logs/ of: ${missed//.missed/}" >&2
    return 3
}

# compare NUMBER SYSTEM ARGS...: the last step, unless NO_CHECK=1: the phenomena of a system beside what is known; then
# report_missed.
compare() {
    if [[ ${NO_CHECK:-0} != 1 ]]; then
        begin "$1 phenomena"
        start phenomena noted phenomena python "analysis/$2/phenomena.py" "$out" "${@:3}"
        finish
        end
        cat "$out/logs/phenomena.log"
    fi
    report_missed
}

# only_fresh ARGS...: set fresh to 1 for --fresh, to 0 without arguments; print the help, or refuse anything else.
only_fresh() {
    fresh=0
    case ${1:-} in
        '') ;;
        --fresh) fresh=1 ;;
        -h | --help) usage && exit ;;
        *) die "unknown argument '$1'" "usage: bash $0 [--fresh]" ;;
    esac
}

# open_folder DEFAULT SETTINGS: set out to $OUT, or else DEFAULT, relative to the repository, which becomes the working
# folder. SETTINGS is a line that the folder keeps: a later call with another one is refused, unless it is --fresh.
open_folder() {
    local settings=$2
    if [[ ${NO_VENV:-0} == 1 ]]; then find_environment; else ensure_env || exit 1; fi
    export OMP_NUM_THREADS=1 GPUS=0 NPROC=1 # what runs side by side must not fight for the cores

    # It can be called from anywhere; what it shows is relative to the repository.
    out=${OUT:-$ROOT/$1}
    mkdir -p "$out"
    out=$(cd "$out" && pwd)
    cd "$ROOT" || exit 1
    out=${out#"$ROOT"/}

    if command -v flock >/dev/null; then # held by the trainings too: none of them is ever started twice
        exec 8>"$out/.lock"
        flock -n 8 || die "another run, or a training that it left behind, is at work in $out"
    fi
    if ((fresh)); then
        [[ -f $out/settings || -z $(ls "$out") ]] || die "$out was not made by this script; remove it yourself"
        find "$out" -mindepth 1 ! -name .lock -delete
    fi
    mkdir -p "$out/logs"
    if [[ ! -f $out/settings ]]; then
        printf '%s\n' "$settings" >"$out/settings"
    elif [[ $settings != "$(<"$out/settings")" && ${DRY_RUN:-0} != 1 ]]; then
        die "$out holds a run with other settings" "it:  $(<"$out/settings")" "now: $settings" \
            "--fresh begins anew in $out; OUT=FOLDER goes elsewhere"
    fi
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
}
