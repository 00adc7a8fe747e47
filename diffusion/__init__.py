"""Second floor: diffusion itself. It may import vae and lab."""
