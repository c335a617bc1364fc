# Before every script that is run on another machine.  POSIX sh; what it prints is read by far.py.

# environment "NAME OTHER=VALUE …": these variables go, or come.
environment() {
  for word in $1; do
    # shellcheck disable=SC2163 # the word is an assignment
    case $word in *=*) export "$word" ;; *) unset "$word" ;; esac
  done
}

# find_program NAME: on PATH, else on that of a log-in: a command by ssh is no log-in, and some sites set PATH only there.
find_program() {
  command -v "$1" >/dev/null 2>&1 && return
  [ ! -r /etc/profile ] || found=$( (. /etc/profile; printf '\n%s' "$PATH") 2>/dev/null </dev/null | tail -n 1)
  [ -z "${found-}" ] || PATH=$found
  command -v "$1" >/dev/null 2>&1
}

# size_of FILE, time_of FILE: bytes; seconds since 1970, empty where no program tells.
size_of() { wc -c <"$1" | tr -d ' '; }
time_of() { stat -c %Y "$1" 2>/dev/null || stat -f %m "$1" 2>/dev/null; }
