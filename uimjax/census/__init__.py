"""What a corpus holds, counted as it streams by: sources, copies, languages, people, personal data, overlap."""
