"""Plans and evaluates cells: plan, cell player, worker, certification, launcher, progress."""
