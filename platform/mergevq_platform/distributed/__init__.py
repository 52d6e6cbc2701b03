"""Ray around the loop: the driver, its workers, and what watches them."""
