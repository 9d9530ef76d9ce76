"""From failures in words to the documents they come from, and beside it what words alone would say."""
