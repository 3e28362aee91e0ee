"""What parts of training cost."""
