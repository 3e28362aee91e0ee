"""The recipes: what `--config` names."""
