"""Gauntlet: threat models, engine, referee, store. Nothing happens at import."""
