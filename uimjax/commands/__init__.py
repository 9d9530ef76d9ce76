"""What each command does, a file a kind; `uimjax.cli` parses and calls. Heavy imports stay inside the functions."""
