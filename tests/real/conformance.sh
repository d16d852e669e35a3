#!/usr/bin/env bash
# Runs the official conformance suite (2025-11-25 and 2026-07-28) against a server URL, with a bearer token if given.
#
#   tests/real/conformance.sh [--set SET]... [--scenario NAME]... [--expected FILE] [--scheme SCHEME] URL [TOKEN]
#
# With TOKEN the suite goes through addbearer.mjs, for the suite itself cannot send a token (nor, with --scheme, know the
# URIs of a federated route). Only the server scenarios required by each set count; the header scenarios of 2026-07-28 are
# reported apart. FILE has lines `SET SCENARIO REASON` for scenarios that must fail. Scenarios that did not come out as
# they should print one line each; with --scenario only those are run, required or not (of the newest revision); the exit code is 0 only if there is none. WARDGATE_CONFORMANCE_OUT keeps results.
set -euo pipefail

usage() {
  echo "usage: $0 [--set SET]... [--scenario NAME]... [--expected FILE] [--scheme SCHEME] URL [TOKEN]" >&2
  exit 2
}
sets=() scenarios=() expected=/dev/null scheme=
while [[ ${1:-} == --* ]]; do
  [[ $# -ge 2 ]] || usage
  case $1 in
    --set) sets+=("$2") ;;
    --scenario) scenarios+=("$2") ;;
    --expected) expected=$2 ;;
    --scheme) scheme=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[[ $# == 1 || $# == 2 ]] || usage
if [[ ${#scenarios[@]} != 0 ]]; then sets=(scenarios); fi
if [[ ${#sets[@]} == 0 ]]; then sets=(2025-11-25 2026-07-28); fi
url=$1
token=${2:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
settings=$("$here/setup.sh")
eval "$settings"

out=${WARDGATE_CONFORMANCE_OUT:-$(mktemp -d "${TMPDIR:-/tmp}/wardgate-conformance.XXXXXX")}
mkdir -p "$out"
proxy=
cleanup() { if [[ -n $proxy ]]; then kill "$proxy" 2>/dev/null || true; wait "$proxy" 2>/dev/null || true; fi; }
trap cleanup EXIT

if [[ -n $token ]]; then
  if [[ ! $url =~ ^http://(127\.0\.0\.1|localhost):([0-9]+)(/.*)?$ ]]; then
    echo "with a token the URL must be http://127.0.0.1:PORT/PATH, not $url" >&2
    exit 2
  fi
  "$WARDGATE_NODE" "$here/addbearer.mjs" 0 "${BASH_REMATCH[2]}" "$token" ${scheme:+"$scheme"} >"$out/addbearer.log" 2>&1 &
  proxy=$!
  path=${BASH_REMATCH[3]}
  port=
  for _ in $(seq 100); do
    port=$(sed -n 's/^LISTENING //p' "$out/addbearer.log")
    if [[ -n $port ]]; then break; fi
    sleep 0.05
  done
  if [[ -z $port ]]; then
    echo "addbearer.mjs did not start: $(cat "$out/addbearer.log")" >&2
    exit 2
  fi
  url=http://127.0.0.1:$port$path
fi

# result SET SCENARIO - `passed failed` of one scenario; nothing if it did not run.
result() { sed -nE "s/^[^ ]+ $2: ([0-9]+) passed, ([0-9]+) failed.*/\1 \2/p" "$out/$1.log" | head -n 1; }

# verdict SET SCENARIO - `ok`, or why it is not.
verdict() {
  local numbers
  numbers=$(result "$1" "$2")
  case $numbers in
    '') echo "did not run" ;;
    '0 '*) echo "${numbers#* } failed, none passed" ;;
    *' 0') echo ok ;;
    *) echo "${numbers#* } of $((${numbers% *} + ${numbers#* })) checks failed" ;;
  esac
}

# reasons SET SCENARIO - the messages of the failed checks.
reasons() {
  "$WARDGATE_NODE" -e '
    const fs = require("fs"), path = require("path");
    const [dir, scenario] = process.argv.slice(1);
    const found = fs.existsSync(dir) ? fs.readdirSync(dir).filter((d) => d.startsWith(`server-${scenario}-2`)) : [];
    for (const d of found) for (const c of JSON.parse(fs.readFileSync(path.join(dir, d, "checks.json"))))
      if (c.status === "FAILURE") console.log(`       ${c.id}: ${String(c.errorMessage ?? c.description).slice(0, 300)}`);
  ' "$out/$1" "$2" || true
}

status=0
for set in "${sets[@]}"; do
  # The exit code is not used: the suite counts scenarios that it does not score.
  if [[ $set == scenarios ]]; then
    required=${scenarios[*]}
    for scenario in "${scenarios[@]}"; do
      "$WARDGATE_NODE" "$WARDGATE_CONFORMANCE" server --url "$url" --scenario "$scenario" --spec-version 2026-07-28 \
        --force -o "$out/$set" >"$out/$scenario.log" 2>&1 || true
      sed -nE "s/^(Passed: )?([0-9]+)\/([0-9]+), ([0-9]+) failed.*/- $scenario: \2 passed, \4 failed/p" \
        "$out/$scenario.log" >>"$out/$set.log"
    done
  else
    required=$("$WARDGATE_NODE" "$WARDGATE_CONFORMANCE" list --requirements "$set" |
      awk '/^Server scenarios/ {on = 1; next} /^[A-Za-z]/ {on = 0} on && $1 == "-" {print $2}')
    "$WARDGATE_NODE" "$WARDGATE_CONFORMANCE" server --url "$url" --requirements "$set" -o "$out/$set" \
      >"$out/$set.log" 2>&1 || true
  fi
  passed=0 failed=0 foreseen=0
  for scenario in $required; do
    found=$(verdict "$set" "$scenario")
    reason=$(sed -nE "s/^$set $scenario (.+)/\1/p" "$expected")
    if [[ $found == ok && -z $reason ]]; then
      passed=$((passed + 1))
    elif [[ $found == ok ]]; then
      failed=$((failed + 1))
      echo "PASSES $set $scenario, which should not: $reason"
    elif [[ -n $reason ]]; then
      foreseen=$((foreseen + 1))
    else
      failed=$((failed + 1))
      echo "FAIL $set $scenario: $found"
      reasons "$set" "$scenario"
    fi
  done
  if [[ $set == 2026-07-28 ]]; then
    line=
    for scenario in http-header-validation http-custom-header-server-validation; do
      found=$(verdict "$set" "$scenario")
      line+="${line:+, }$scenario: $found"
      if [[ $found != ok ]]; then reasons "$set" "$scenario"; fi
    done
    echo "$set not scored: $line"
  fi
  echo "$set: $passed passed, $failed failed, $foreseen failed as foreseen"
  if [[ $failed != 0 || $passed == 0 ]]; then
    status=1
    if ! grep -q '=== SUMMARY ===' "$out/$set.log"; then tail -n 5 "$out/$set.log" >&2; fi
  fi
done
echo "results in $out" >&2
exit "$status"
