"""Runs a command and fails where it takes more CPU seconds than allowed.

python -m tests.tools.cpu_budget SECONDS COMMAND [ARG ...]
"""

from __future__ import annotations

import resource
import subprocess
import sys


def main() -> int:
    limit, *command = sys.argv[1:]
    done = subprocess.run(command, check=False)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(f"{' '.join(command)}: {seconds:.0f} of {limit} CPU seconds", file=sys.stderr)
    if done.returncode != 0:
        return done.returncode
    return 0 if seconds <= float(limit) else 1


if __name__ == "__main__":
    sys.exit(main())
