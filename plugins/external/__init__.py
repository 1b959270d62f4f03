"""Attacks of other libraries, as they are, each offered where its library is installed."""
