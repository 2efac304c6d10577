"""Configuration into objects, objects into actors, what they report into records."""
