# put FILE: write standard input to a file that a reader sees whole or not at all.
[ -d "${1%/*}" ] || exit 3
temporary=${1%/*}/.${1##*/}.$$.tmp
trap 'rm -f "$temporary"' EXIT
cat >"$temporary" && mv "$temporary" "$1"
