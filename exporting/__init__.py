"""Models in forms that other programs read: a folder for the Hugging Face hub, graphs for other runtimes."""
