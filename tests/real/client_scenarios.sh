#!/usr/bin/env bash
# Runs the conformance suite's client scenarios of client_scenarios.txt with the gateway as the client under test.
#
#   tests/real/client_scenarios.sh WARDGATE
#
# Prints one line for each scenario that did not come out as that file says, with its failed checks, and a count; exits
# with 1 if there is one, or if the suite requires a scenario without OAuth that the file does not name.
# WARDGATE_CONFORMANCE_OUT keeps results.
set -euo pipefail

if [[ $# != 1 ]]; then
  echo "usage: $0 WARDGATE" >&2
  exit 2
fi
WARDGATE_BIN=$(realpath "$1")
export WARDGATE_BIN
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
settings=$("$here/setup.sh")
eval "$settings"
out=${WARDGATE_CONFORMANCE_OUT:-$(mktemp -d "${TMPDIR:-/tmp}/wardgate-conformance.XXXXXX")}
mkdir -p "$out"

# run SET SCENARIO - the suite's own verdict, `ok` or not, in a file: scenarios run two at a time.
run() {
  local dir="$out/client-$1-$2"
  if "$WARDGATE_NODE" "$WARDGATE_CONFORMANCE" client --command "$WARDGATE_PYTHON $here/client_scenario.py" \
    --scenario "$2" --spec-version "$1" -o "$dir" >"$dir.log" 2>&1; then
    echo ok >"$dir.verdict"
  else
    echo failed >"$dir.verdict"
  fi
}

reasons() {
  "$WARDGATE_NODE" -e '
    const fs = require("fs"), path = require("path");
    const find = (dir) => fs.readdirSync(dir, { withFileTypes: true }).flatMap((e) =>
      e.isDirectory() ? find(path.join(dir, e.name)) : e.name === "checks.json" ? [path.join(dir, e.name)] : []);
    for (const file of fs.existsSync(process.argv[1]) ? find(process.argv[1]) : [])
      for (const c of JSON.parse(fs.readFileSync(file)))
        if (c.status === "FAILURE") console.log(`       ${c.id}: ${String(c.errorMessage ?? c.description).slice(0, 300)}`);
  ' "$out/client-$1-$2" || true
}

status=0
named=$(grep -v '^#' "$here/client_scenarios.txt")
for set in 2025-11-25 2026-07-28; do
  required=$("$WARDGATE_NODE" "$WARDGATE_CONFORMANCE" list --requirements "$set" |
    awk '/^Client scenarios/ {on = 1; next} /^[A-Za-z]/ {on = 0} on && $1 == "-" && $2 !~ /^auth\// {print $2}')
  for scenario in $required; do
    if ! grep -qE "^$set $scenario( |\$)" <<<"$named"; then
      echo "MISSING $set $scenario: client_scenarios.txt does not name it"
      status=1
    fi
  done
done

while read -r set scenario _; do
  while (($(jobs -rp | wc -l) >= 2)); do wait -n; done
  run "$set" "$scenario" &
done <<<"$named"
wait

passed=0
while read -r set scenario reason; do
  verdict=$(cat "$out/client-$set-$scenario.verdict")
  if [[ $verdict == ok && -z $reason ]]; then
    passed=$((passed + 1))
  elif [[ $verdict == ok ]]; then
    echo "PASSES $set $scenario, which should not: $reason"
    status=1
  elif [[ -z $reason ]]; then
    echo "FAIL $set $scenario"
    reasons "$set" "$scenario"
    status=1
  fi
done <<<"$named"
echo "client scenarios: $passed passed"
echo "results in $out" >&2
exit "$status"
