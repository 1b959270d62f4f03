"""The leaderboard pages over a database of results. This package never imports torch."""
