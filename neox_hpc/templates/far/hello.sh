# hello FOLDER: who and where this is, and what it has.
[ -z "$1" ] || cd "$1" || exit 3
for sum in sha256sum shasum openssl cksum; do
  command -v "$sum" >/dev/null 2>&1 && break
done
printf '%s\n' "$(pwd)" "${HOME:-}" "$(uname -n)" "$(id -un 2>/dev/null || id -u)" "$sum" "$(date +%s)"
env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' # names only: values may be secrets
