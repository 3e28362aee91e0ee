"""What data costs: reading files in every format, finding records in large ones, waiting for data in a run."""
