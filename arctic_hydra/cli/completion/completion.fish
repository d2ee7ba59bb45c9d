# TAB completion for fish: `arctic-hydra ...` and `python -m arctic_hydra ...`.
# Load it in ~/.config/fish/config.fish: python -m arctic_hydra -sc install=fish | source

# Arguments: those of the program that come before its own.
function __arctic_hydra_complete
    set -lx COMP_LINE (commandline -cp | string collect)
    set -l program (string replace -r '^~/' "$HOME/" -- (commandline -opc)[1])
    $program $argv -sc query=fish 2>/dev/null </dev/null
end

function __arctic_hydra_is_module
    set -l words (commandline -opc)
    set -l at (contains -i -- -m $words)
    or return 1
    set -l next (math $at + 1)
    test "$words[$next]" = arctic_hydra
end

complete -c arctic-hydra -k -f -a '(__arctic_hydra_complete)'
for python in python python3 python3.11 python3.12 python3.13
    complete -c $python -n __arctic_hydra_is_module -k -f -a '(__arctic_hydra_complete -m arctic_hydra)'
end
