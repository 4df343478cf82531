"""From run folders to one page that people pass around."""
