"""Pictures of images, of what became of them, and of attributions, for the pages."""
