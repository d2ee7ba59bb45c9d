# TAB completion for bash: `arctic-hydra ...` and `python -m arctic_hydra ...`.
# Load it in ~/.bashrc: eval "$(python -m arctic_hydra -sc install=bash)"

# Arguments: the part of the word that bash replaces, then the program with its first arguments.
_arctic_hydra_complete() {
    local word=$1 line=${COMP_LINE:0:COMP_POINT} candidate
    shift
    COMPREPLY=()
    compopt +o default +o bashdefault 2>/dev/null
    while IFS= read -r candidate; do
        COMPREPLY+=("$candidate")
    done < <(COMP_LINE=$line COMP_WORD=$word "${1/#\~\//$HOME/}" "${@:2}" -sc query=bash 2>/dev/null </dev/null)
    # A key, a folder or the start of a list goes on without a space.
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./,[] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}

_arctic_hydra() {
    _arctic_hydra_complete "$2" "$1"
}

_arctic_hydra_python() {
    local index
    for ((index = 1; index + 1 < COMP_CWORD; index++)); do
        if [[ ${COMP_WORDS[index]} == -m ]]; then
            if [[ ${COMP_WORDS[index + 1]} == arctic_hydra ]]; then
                _arctic_hydra_complete "$2" "$1" -m arctic_hydra
                return
            fi
            break
        fi
    done
    COMPREPLY=()
    if [[ -n $_arctic_hydra_previous ]]; then
        "$_arctic_hydra_previous" "$@"
    fi
}

# Lines of Python that are not ours are completed as before.
if ! complete -p python >/dev/null 2>&1 && declare -F _completion_loader >/dev/null; then
    _completion_loader python >/dev/null 2>&1
fi
if [[ $(complete -p python 2>/dev/null) =~ \ -F\ ([^ ]+) && ${BASH_REMATCH[1]} != _arctic_hydra_python ]]; then
    _arctic_hydra_previous=${BASH_REMATCH[1]}
fi

complete -o nosort -F _arctic_hydra arctic-hydra 2>/dev/null || complete -F _arctic_hydra arctic-hydra
complete -o bashdefault -o default -F _arctic_hydra_python python python3 python3.11 python3.12 python3.13
