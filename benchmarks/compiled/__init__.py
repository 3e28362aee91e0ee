"""Programs as compilers make them, without the hardware: what they copy and what they need."""
