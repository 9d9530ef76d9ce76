"""What the corpus card counts."""
