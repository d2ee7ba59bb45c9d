# TAB completion for zsh: `arctic-hydra ...` and `python -m arctic_hydra ...`.
# Load it in ~/.zshrc, after compinit: eval "$(python -m arctic_hydra -sc install=zsh)"

# Arguments: those of the program that come before its own.
_arctic_hydra_complete() {
    local program=${(Q)words[1]} typed="${(j: :)words[1,CURRENT-1]} $PREFIX" answer text about
    local -a goes_on complete
    while IFS= read -r answer; do
        text=${answer%%$'\t'*} about=${answer#*$'\t'}
        text=${text//:/\\:}
        # A key, a folder or the start of a list goes on without a space.
        if [[ $text == *[=./,\[] ]]; then
            goes_on+=("$text${about:+:$about}")
        else
            complete+=("$text${about:+:$about}")
        fi
    done < <(COMP_LINE=$typed "${program/#\~\//$HOME/}" "$@" -sc query=zsh 2>/dev/null </dev/null)
    _describe -V 'arctic_hydra' goes_on -S '' -- complete
}

_arctic_hydra() {
    _arctic_hydra_complete
}

_arctic_hydra_python() {
    local -i at=${words[(i)-m]}
    if (( at + 1 < CURRENT )) && [[ ${words[at + 1]} == arctic_hydra ]]; then
        _arctic_hydra_complete -m arctic_hydra
    else
        ${_arctic_hydra_previous:-_default} "$@"
    fi
}

(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
# Lines of Python that are not ours are completed as before.
[[ ${_comps[python]} == _arctic_hydra_python ]] || _arctic_hydra_previous=${_comps[python]}
compdef _arctic_hydra arctic-hydra
compdef _arctic_hydra_python python python3 python3.11 python3.12 python3.13
