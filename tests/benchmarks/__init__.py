"""Ours and the peers on the same models, examples, radii and steps, in one process."""
