# Completions of spa-client for fish. `spa-client completions fish` prints this file.
function __spa_client_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    $words[1] complete -- $words (commandline --current-token --cut-at-cursor) 2>/dev/null
end
complete --command spa-client --no-files --arguments '(__spa_client_complete)'
