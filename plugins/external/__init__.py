"""Attacks of other libraries, each registered where its library is installed."""
