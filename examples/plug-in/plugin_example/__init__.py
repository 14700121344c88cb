"""An ordinary Flower project."""
