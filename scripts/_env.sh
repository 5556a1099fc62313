# shellcheck shell=bash
# The environment of the scripts.  Source this file, then call ensure_env.
#
# ensure_env makes .venv in the repository, or brings it up to date, from nothing but Python 3.11 or 3.12 and a C++
# compiler, and puts its commands first in PATH.  When nothing has changed it costs milliseconds.
#   PYTHON=...  interpreter to build it with (default: the first of python3.11, python3.12, python3 that fits)
#   PIP_...     pip's own settings hold, e.g. PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu: torch without CUDA

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ENV_DIR=$ROOT/.venv
ENV_LOG=$ROOT/.venv.log
ENV_STAMP=$ENV_DIR/stamp
ENV_EXTRAS=text,data,hf,log,dev

_env_say() { printf '%s\n' "$*" >&2; }

# Version of an interpreter; fails for one that does not run (such as a launcher without anything behind it).
_env_version() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null </dev/null; }

# Changes with whatever decides what is installed.
_env_hash() { (cd "$ROOT" && cat setup.cfg constraints.txt pyproject.toml scripts/_env.sh | git hash-object --stdin); }

# Is .venv complete, of these files, in this place and, where PYTHON is given, of that version?
_env_fits() {
    local hash version place
    [[ -x $ENV_DIR/bin/python && -f $ENV_STAMP ]] || return 1
    { read -r hash && read -r version && read -r place; } <"$ENV_STAMP" || return 1
    [[ $hash == "$(_env_hash)" && $place == "$ROOT" ]] || return 1
    [[ -z ${PYTHON:-} || $version == "$(_env_version "$PYTHON")" ]]
}

# Print the interpreter to use, or say what was found instead.
_env_python() {
    local name version found='' names=(python3.11 python3.12 python3)
    [[ -z ${PYTHON:-} ]] || names=("$PYTHON")
    for name in "${names[@]}"; do
        version=$(_env_version "$name") || version=
        case $version in
            3.11.* | 3.12.*) command -v "$name" && return 0 ;;
            "") command -v "$name" >/dev/null && found+=" $name (does not run)" || found+=" $name (not found)" ;;
            *) found+=" $name ($version)" ;;
        esac
    done
    _env_say "error: Python 3.11 or 3.12 is needed; tried:$found."
    _env_say "       Install one of them, or name it: PYTHON=/path/to/python3.11"
    return 1
}

_env_check_compiler() {
    local compiler
    for compiler in ${CXX:+"${CXX%% *}"} g++ c++ clang++; do
        command -v "$compiler" >/dev/null && return 0
    done
    _env_say "error: no C++ compiler (looked for ${CXX:-g++, c++, clang++}); fastBPE comes as source and needs one."
    _env_say "       Debian, Ubuntu: apt install g++   Fedora: dnf install gcc-c++   macOS: xcode-select --install"
    return 1
}

# _env_step WHAT HINT COMMAND...: run one step, its output to the log; on failure show why and what to try.
_env_step() {
    local what=$1 hint=$2 started=$SECONDS status=0 beat=''
    shift 2
    printf '  %s ...' "$what" >&2
    printf '\n== %s: %s\n' "$what" "$*" >>"$ENV_LOG"
    if [[ -t 2 ]]; then # a dot every ten seconds
        (while sleep 10 && kill -0 $$ 2>/dev/null; do printf '.' >&2; done) 9>&- &
        beat=$!
    fi
    "$@" >>"$ENV_LOG" 2>&1 </dev/null || status=$?
    if [[ -n $beat ]]; then
        kill "$beat" 2>/dev/null
        wait "$beat" 2>/dev/null
    fi
    if ((status == 0)); then
        _env_say " $((SECONDS - started)) s"
        return 0
    fi
    _env_say " FAILED (exit status $status). The end of $ENV_LOG:"
    tail -n 15 "$ENV_LOG" | sed 's/^/    | /' >&2
    _env_say "error: the environment is not complete; the step '$what' failed. Try: $hint; then call again."
    return 1
}

# pip of the environment. A target that the user set for another purpose would put packages elsewhere.
_env_pip() {
    (cd "$ROOT" && env -u PIP_USER -u PIP_TARGET -u PIP_PREFIX -u PYTHONHOME \
        "$ENV_DIR/bin/python" -m pip install --progress-bar off -c constraints.txt "$@")
}

_env_build() {
    local python version net="check the network and pip's settings (pip config list)"
    python=$(_env_python) || return 1
    version=$(_env_version "$python") || return 1
    _env_check_compiler || return 1
    : >"$ENV_LOG" || return 1
    if [[ -f $ENV_STAMP && $(sed -n 2,3p "$ENV_STAMP") == "$version"$'\n'"$ROOT" ]]; then
        _env_say "Updating the Python environment .venv: seconds, unless something new must be downloaded."
        rm -f "$ENV_STAMP" # from here on it is incomplete: an interrupted update ends in a new environment
    else
        _env_say "Making the Python environment .venv with Python $version: once, about a minute plus the downloads."
        _env_step "1/6 empty environment" "install the venv module (Debian, Ubuntu: apt install python${version%.*}-venv)" \
            "$python" -m venv --clear "$ENV_DIR" || return 1
    fi
    _env_step "2/6 pip and build tools" "$net" _env_pip pip setuptools wheel Cython || return 1
    _env_step "3/6 torch" "$net" _env_pip torch numpy || return 1
    # Source packages are built with the pinned tools of step 2 instead of whatever is newest on the day.
    _env_step "4/6 fastBPE and others from source" \
        "$net, and that Python's headers are there (Debian, Ubuntu: apt install python${version%.*}-dev)" \
        _env_pip --no-build-isolation fastBPE antlr4-python3-runtime || return 1
    _env_step "5/6 fairseq, the other packages, this package" "$net" \
        _env_pip --no-build-isolation --editable ".[$ENV_EXTRAS]" || return 1
    _env_step "6/6 check" "remove $ENV_DIR" \
        "$ENV_DIR/bin/python" -c "import fairseq, fastBPE, nltk, sentencepiece, tokenizers, torch, transformers; print(torch.__version__)" || return 1
    printf '%s\n' "$(_env_hash)" "$version" "$ROOT" >"$ENV_STAMP.new" && mv "$ENV_STAMP.new" "$ENV_STAMP"
}

ensure_env() {
    local status=0
    if ! _env_fits; then
        if command -v flock >/dev/null; then # two calls at once: the second waits, then finds it done
            exec 9>"$ENV_DIR.lock" || return 1
            flock -n 9 || { _env_say "Waiting for another call that is making .venv ..." && flock 9; }
        fi
        _env_fits || _env_build || status=1
        exec 9>&-
        ((status == 0)) || return 1
    fi
    export VIRTUAL_ENV=$ENV_DIR PATH=$ENV_DIR/bin:$PATH
    unset PYTHONHOME
    hash -r
}
