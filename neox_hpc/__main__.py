"""``python -m neox_hpc``: the command, for where the script is not on PATH."""

from neox_hpc.cli import main

if __name__ == "__main__":
    main()
