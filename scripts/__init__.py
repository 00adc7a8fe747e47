"""The door: one script per act. Scripts may import everything; nothing imports them but each other."""
