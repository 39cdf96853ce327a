"""What the pages of all tools share. A page needs no other file and no network."""
