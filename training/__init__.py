"""What a training run needs around its loop: loaders, optimizer, autosave, state to resume from, record for people."""
