"""Third floor: from small pictures to large ones. It may import diffusion, vae and lab."""
