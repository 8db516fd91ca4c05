"""Data: the embedded emoji scenes, and the way in for data of your own."""
