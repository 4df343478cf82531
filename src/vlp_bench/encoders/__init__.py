"""Image and text encoders shared by every method."""
