"""The drivers of tuning: a space, a study that remembers, and runs that are its trials."""
