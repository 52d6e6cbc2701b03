"""Ray around the loop: the driver, its workers, heartbeats and failures."""
