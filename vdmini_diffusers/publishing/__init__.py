"""What a folder or repository is, a picture of what was removed from it, and its way to the Hub."""
