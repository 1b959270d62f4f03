# Commands of a working day; `just` alone lists them.

default:
    @just --list

# Run the tests; `just test -m slow` runs the slow ones
test *arguments:
    uv run pytest {{arguments}}

# Check style and types
lint:
    uv run ruff check .
    uv run ruff format --check .
    uv run mypy

# Build the documentation into docs/_build; warnings are errors
docs:
    uv run sphinx-build -q -W --keep-going docs docs/_build

# Serve the leaderboard of ./bench.db
serve *arguments:
    uv run bench leaderboard {{arguments}}
