# Completions of spa-client for bash, with or without bash-completion. `spa-client completions bash`
# prints this file.
_spa_client() {
    local -a words
    local word prefix candidate
    # As typed: COMP_WORDS is torn apart at the @ of ssh@work.
    IFS=$' \t' read -ra words <<<"${COMP_LINE:0:COMP_POINT}"
    [[ "${COMP_LINE:0:COMP_POINT}" == *[[:blank:]] ]] && words+=('')
    word="${words[${#words[@]} - 1]}"
    # Bash replaces only what it takes for the word, from its last word break on.
    prefix="${word%"$2"}"
    COMPREPLY=()
    while IFS=$'\t' read -r candidate _; do
        COMPREPLY+=("${candidate#"$prefix"}")
    done < <("${words[0]}" complete -- "${words[@]}" 2>/dev/null)
    # More may follow a directory.
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == */ ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _spa_client spa-client
