"""What data costs: reading files in every format, finding records in large ones, preparing, waiting in a run."""
