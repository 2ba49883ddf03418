"""What the scripts of `data/` do: draw synthetic scenes, and build, merge, split and check parquet files."""
