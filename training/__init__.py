"""What a training run needs around its loop: optimizer, progress, autosave, state to resume from, lock, record."""
