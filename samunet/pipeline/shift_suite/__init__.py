"""samunet_shift_suite: how scores fall when the images change as between scanners."""
