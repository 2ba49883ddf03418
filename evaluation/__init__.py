"""How good a model is: segmentation and fusion metrics, intervals, the text ablation, and their results on disk."""
