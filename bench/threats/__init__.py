"""Threat models: perturbation sets, goals, access, budgets."""
