"""The command line.

Data is printed on stdout, messages and progress on stderr. Exit codes: 0 done, 1 internal error,
2 usage error, 3 finished with failed cells, 4 a check failed, 5 unsuitable environment,
130 interrupted (the same command resumes).
"""

from __future__ import annotations

import sys

import typer

from bench.cli.maintenance_commands import add_maintenance_commands
from bench.cli.plugin_commands import add_plugin_commands
from bench.cli.read_commands import add_read_commands
from bench.cli.run_commands import add_run_commands
from bench.core.errors import BenchError

app = typer.Typer(
    name="bench",
    help="Evaluate adversarial attacks against defenses under declared threat models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
add_run_commands(app)
add_read_commands(app)
add_plugin_commands(app)
add_maintenance_commands(app)


def main() -> None:
    """Run a command; a BenchError is printed as one sentence and sets the exit code."""
    try:
        app()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("bench: interrupted; the same command resumes where it stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
