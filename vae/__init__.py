"""First floor: autoencoders and the codecs that diffusion works through. It may import lab."""
