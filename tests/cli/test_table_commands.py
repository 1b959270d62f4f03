"""`bench check-table` prints every check and says by its exit code whether one warns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TABLES = Path(__file__).parents[1] / "fixtures" / "published_tables"


def check_table(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.cli", "check-table", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=TABLES, timeout=120)


def test_check_table_exits_with_4_where_a_check_warns() -> None:
    done = check_table("table_a.toml", "table_b.toml")
    assert done.returncode == 4
    assert done.stdout.count("tables-contradict") == 3
    assert "5 warning" in done.stderr
    honest = check_table("honest_sweep.csv", "--json")
    assert honest.returncode == 0, honest.stderr
    assert '"schema"' in honest.stdout and '"union-exceeds-a-member"' in honest.stdout
    missing = check_table("none.csv")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr
