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
modules() { sed -n 's|^\t\./||p' go.work; }

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
	GOBIN=$BIN go -C "$dir" install tool
	touch "$stamp"
}

# version prints what the binaries call themselves.
version() { git describe --tags --always --dirty 2>/dev/null || echo unknown; }
