"""The command line.

Data is printed on stdout, messages and progress on stderr. Exit codes: 0 done, 1 internal error,
2 usage error, 3 finished with failed cells, 4 a check failed, 5 unsuitable environment,
130 stopped by a signal (the same command resumes).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from bench.cli.cite_commands import add_cite_commands
from bench.cli.compare_commands import add_compare_commands
from bench.cli.import_commands import add_import_commands
from bench.cli.maintenance_commands import add_maintenance_commands
from bench.cli.plot_commands import add_plot_commands
from bench.cli.plugin_commands import add_plugin_commands
from bench.cli.profile_commands import add_profile_commands
from bench.cli.read_commands import add_read_commands
from bench.cli.run_commands import add_run_commands
from bench.cli.sweep_commands import add_sweep_commands
from bench.cli.table_commands import add_table_commands
from bench.core.errors import INTERRUPTED, BenchError

HELP_PANELS = {
    "Evaluate": ("run", "sweep", "profile", "train", "reproduce"),
    "Results": ("report", "leaderboard", "compare", "plot", "cite", "export", "check-table"),
    "Plugins": ("list", "show", "new", "import", "check", "submit"),
    "Maintenance": ("doctor", "db"),
}
"""Panel of the help -> its commands, in their order."""


class OrderedCommands(TyperGroup):
    """The commands in the order of HELP_PANELS."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, those of no panel last."""
        listed = [name for names in HELP_PANELS.values() for name in names]
        known = super().list_commands(ctx)
        return sorted(known, key=lambda name: listed.index(name) if name in listed else len(listed))


app = typer.Typer(
    name="bench",
    cls=OrderedCommands,
    help="Evaluate adversarial attacks against defenses under declared threat models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
add_run_commands(app)
add_read_commands(app)
add_compare_commands(app)
add_plot_commands(app)
add_cite_commands(app)
add_plugin_commands(app)
add_import_commands(app)
add_table_commands(app)
add_sweep_commands(app)
add_profile_commands(app)
add_maintenance_commands(app)
_PANEL_OF = {name: panel for panel, names in HELP_PANELS.items() for name in names}
for _command in app.registered_commands:
    _name = _command.name or str(getattr(_command.callback, "__name__", ""))
    _command.rich_help_panel = _PANEL_OF.get(_name)
for _group in app.registered_groups:
    _group.rich_help_panel = _PANEL_OF.get(str(_group.name))


def main() -> None:
    """Run a command; a BenchError is printed as one sentence and sets the exit code.

    SIGTERM and SIGHUP end a command as Ctrl-C does.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # no process that it starts imports from the current folder
    _interrupt_on_signals()
    try:
        app()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("bench: interrupted; the same command resumes where it stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP; one that is ignored, as by nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
