# ask ENVIRONMENT COMMAND…: run a command of this machine, which reads our standard input.
environment "$1"
shift
find_program "$1" || exit 127
"$@"
