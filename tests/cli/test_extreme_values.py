"""Values out of range: refused with one sentence instead of a traceback."""

from __future__ import annotations

import pytest

from bench.cli.serve import serve
from bench.core.errors import BenchError, UnavailableError
from bench.store.database import resolve_url
from tests.cli.test_user_errors import SMALL, Shell, shell, states

__all__ = ["shell"]


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 99999999999999999999])
def test_a_seed_beyond_64_bits_is_refused(shell: Shell, seed: int) -> None:
    code, _, err = shell.run("run", *SMALL, "--seed", str(seed))
    assert code == 2
    assert "Invalid value for '--seed'" in err


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_the_largest_and_smallest_seeds_work(shell: Shell, seed: int) -> None:
    code, _, _ = shell.run("run", *SMALL, "--seed", str(seed))
    assert code == 0 and ("fgsm", "linear") in states(shell.folder)


@pytest.mark.parametrize("port", [99999, -1])
def test_a_port_out_of_range_is_refused(shell: Shell, port: int) -> None:
    code, _, err = shell.run("leaderboard", "--port", str(port), "--no-open")
    assert code == 2
    assert "Invalid value for '--port'" in err
    with pytest.raises(UnavailableError, match=rf"port {port} of 127\.0\.0\.1 cannot be used"):
        serve(port=port, open_browser=False)


@pytest.mark.parametrize("url", ["postgresql://h:abc/x", "postgresql://[::1/x"])
def test_an_invalid_database_url_is_refused(shell: Shell, url: str) -> None:
    with pytest.raises(BenchError, match="is not a database URL"):
        resolve_url(url)
    code, _, err = shell.run("report", "--db", url)
    assert code == 2 and "is not a database URL: write bench.db, sqlite:///bench.db or" in err
