"""Studies of what people judge."""
