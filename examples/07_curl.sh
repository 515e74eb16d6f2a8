#!/bin/sh
# Use the HTTP API with curl: sh examples/07_curl.sh [URL]
# Needs 03 and `soma-eval serve --small-model --allow-http --allow-private-addresses`. With an API key, add
# -H "Authorization: Bearer $SOMA_EVAL_API_KEY" to each call but /health.
set -eu

url=${1:-http://127.0.0.1:8000}
post() { curl --silent --show-error --header 'Content-Type: application/json' "$@"; echo; }

curl --silent --show-error --fail "$url/health"
echo

# One model, with its data in the request; a competition. The answers are JSON.
post --data @example-files/evaluation.json "$url/eval"
post --data @example-files/competition.json "$url/score"

# The same as a job: its address is in the header Location, and events tell its progress up to its end.
job=$(post --data @example-files/competition.json --header 'Prefer: respond-async' \
    --output /dev/null --write-out '%header{location}' "$url/score")
curl --silent --show-error --no-buffer "$url$job/events"

# An error is JSON too: its code, whose fault it is, and whether another try may help.
post --data '{"weights_url": "https://publisher.example/weights", "seed": -1}' "$url/eval"
