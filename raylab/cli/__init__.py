"""The commands. Thin: they read words, call a driver, and print."""
