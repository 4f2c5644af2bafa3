"""What explanation jobs measured of single images."""
