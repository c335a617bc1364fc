# look MARK QUESTION…: what is on this machine.  A line with the mark comes before each answer.
#   exists:PATH  real:PATH  names:FOLDER/NAME  text:FILE  image:FILE  sum:FILE  program:NAME
exists() {
  if [ -e "$1" ]; then
    echo yes
    return
  fi
  above=$1
  while above=${above%/*}; [ -n "$above" ] && [ ! -e "$above" ]; do :; done
  if [ -x "${above:-/}" ]; then echo no; else echo unknown; fi
}

mark=$1
shift
for question; do
  printf '\n%s\n' "$mark"
  what=${question#*:}
  case $question in
    exists:*) exists "$what" ;;
    real:*) readlink -f "$what" 2>/dev/null || (cd "$what" 2>/dev/null && pwd -P) ;;
    names:*)
      for path in "$what" "$what".*; do
        if [ -e "$path" ] || [ -L "$path" ]; then printf '%s\n' "${path##*/}"; fi
      done
      ;;
    text:*) [ ! -f "$what" ] || cat "$what" ;;
    image:*)
      if [ -f "$what" ]; then
        size_of "$what"
        time_of "$what" || echo
        dd if="$what" bs=1 skip=32 count=32 2>/dev/null | od -An -v -tx1 | tr -d ' \n'
      fi
      ;;
    sum:*) [ ! -f "$what" ] || sha256sum "$what" 2>/dev/null ;;
    program:*) find_program "$what" && command -v "$what" ;;
  esac
done
exit 0
