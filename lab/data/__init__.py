"""Where samples come from: sources, the loader, and what checks them."""
