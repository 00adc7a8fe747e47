"""Ground floor: what every experiment stands on. It imports none of the other floors."""
