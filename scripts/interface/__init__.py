"""What the scripts have in common with their users: exit codes, flags, pictures on disk, plots."""
