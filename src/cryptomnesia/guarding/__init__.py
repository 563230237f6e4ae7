"""A pipeline whose images are judged before they are returned."""
