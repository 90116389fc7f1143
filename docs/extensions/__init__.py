"""What the site has and the pages on a forge do not."""
