"""The leaderboard: pages over the store. It never imports torch."""
