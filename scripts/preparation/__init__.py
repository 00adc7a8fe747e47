"""What ``prepare.py`` makes and looks at: two sets of emoji, and the doctor's visit."""
