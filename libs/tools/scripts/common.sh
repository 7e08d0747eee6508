# Sourced by the scripts behind the Makefile. Sets the working directory to the
# root of the repository.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
ROOT=$PWD
BIN=$ROOT/.bin
CACHE=$ROOT/.cache
# A workspace hides broken go.mod files and illegal imports: whatever counts is
# done with each module by itself.
export GOWORK=off

say() { printf '== %s\n' "$*"; }
warn() { printf '!! %s\n' "$*" >&2; }
die() { warn "$*"; exit 1; }

command -v go >/dev/null || die "Go is not installed (go.work names the version)"

# modules prints the directory of each module of the workspace.
modules() { awk '$1 ~ /^\.\// { print substr($1, 3) }' go.work; }

# go_modules prints those that hold Go code.
go_modules() {
	local m
	for m in $(modules); do
		[ -z "$(module_files "$m" | head -n 1)" ] || echo "$m"
	done
}

# module_files MODULE prints the module's Go files, without those of modules
# nested in it.
module_files() {
	local nested
	local prune=(-name testdata)
	while read -r nested; do
		[ "$nested" = "$1/go.mod" ] || prune+=(-o -path "${nested%/go.mod}")
	done < <(find "$1" -name go.mod)
	find "$1" \( "${prune[@]}" \) -prune -o -name '*.go' -print
}

# tools GROUP builds the tools that libs/tools/GROUP/go.mod pins, unless they
# are there and up to date.
tools() {
	local dir=libs/tools/$1 stamp=$BIN/.$1
	if [ -e "$stamp" ] && [ "$stamp" -nt "$dir/go.mod" ] && [ "$stamp" -nt "$dir/go.sum" ]; then
		return
	fi
	say "building the tools of $dir (once)"
	mkdir -p "$BIN"
	GOBIN=$BIN go -C "$dir" install tool && touch "$stamp"
}

# ci: is this an automatic build? Then what is missing is installed, and what
# cannot run is a failure.
ci() { [ "${CI:-}" = true ]; }

# apt_install PACKAGE... with the first that exists of "a|b".
apt_install() {
	local sudo=() want names name packages=()
	[ "$(id -u)" = 0 ] || sudo=(sudo)
	command -v apt-get >/dev/null || { warn "no apt-get to install $* with"; return 1; }
	"${sudo[@]}" apt-get update -q >/dev/null || warn "apt-get update failed"
	for want in "$@"; do
		IFS='|' read -ra names <<<"$want"
		for name in "${names[@]}"; do
			if apt-cache show "$name" >/dev/null 2>&1; then
				packages+=("$name")
				continue 2
			fi
		done
		packages+=("${names[0]}")
	done
	say "installing ${packages[*]}"
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
		"${packages[@]}" >/dev/null
}

# ldflags prints what stamps version and revision into the binaries; nothing
# where there is no git to ask.
ldflags() {
	local version revision
	version=$(git describe --tags --always --dirty --match 'v[0-9]*' 2>/dev/null) || return 0
	revision=$(git rev-parse HEAD)
	printf -- '-X mqtt-integration/libs/buildinfo.version=%s -X mqtt-integration/libs/buildinfo.revision=%s' \
		"$version" "$revision"
}

# patiently COMMAND... says every 15 s that a silent command is still at work.
patiently() {
	local start=$SECONDS ticker rc=0
	(while sleep 15; do echo "   still at it ($((SECONDS - start)) s)"; done) &
	ticker=$!
	"$@" || rc=$?
	kill "$ticker" 2>/dev/null || true
	wait "$ticker" 2>/dev/null || true
	return "$rc"
}

# build_service SERVICE builds its commands to .bin.
build_service() {
	local command
	for command in services/"$1"/cmd/*/; do
		[ -d "$command" ] || continue
		CGO_ENABLED=0 go -C "services/$1" build -trimpath -ldflags "$(ldflags)" \
			-o "$BIN/" "./cmd/$(basename "$command")"
	done
}
