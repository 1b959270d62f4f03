"""Plans and plays evaluation cells: worker, certification, diagnostics, launcher, progress."""
