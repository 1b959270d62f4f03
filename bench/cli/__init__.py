"""The command line: the only place where all stages are joined.

stdout is data, stderr is talk. Exit codes: 0 done, 1 internal error, 2 usage, 3 finished with
failed cells, 4 a check did not hold, 5 the environment is unfit, 130 interrupted and resumable.
"""

from __future__ import annotations

import sys

import typer

from bench.cli import maintenance_commands, plugin_commands, read_commands, run_commands
from bench.core.errors import BenchError

app = typer.Typer(
    name="bench",
    help="Every adversarial attack against every defense, under declared rules, refereed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for room in (run_commands, read_commands, plugin_commands, maintenance_commands):
    room.enter(app)


def main() -> None:
    """Run a command; a user's mistake is one sentence and an exit code."""
    try:
        app()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("bench: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
