"""Measures of single images, as explanation jobs store them."""
