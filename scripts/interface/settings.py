"""The flags that say how pictures are drawn and selected, for every script that draws some."""

import argparse

NAMES = (
    "sampler",
    "steps",
    "spacing",
    "guidance",
    "eta",
    "variance",
    "churn",
    "logsnr_limits",
    "times",
    "chunk",
)
TILE = 256  # side in pixels of a small picture of the tiles that are enlarged one by one, unless told otherwise


def add_flags(parser: argparse.ArgumentParser, *, several: bool = False, chunk: bool = True) -> None:
    """Add one flag for each setting of the sampler; one that is not given keeps the run's own value.

    Args:
        parser: of the script.
        several: whether several scales of guidance may be given, which then are a tuple.
        chunk: whether pictures pass the network several at a time.
    """
    add = parser.add_argument_group("settings of the sampler (defaults: the run's own, stage.sampling)").add_argument
    add(
        "--sampler",
        help="ddim, ddpm, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_3m, unipc_2, unipc_3, plms or lms",
    )
    add("--steps", type=int, help="steps, one denoiser call each (heun: two)")
    add("--spacing", help="of the steps: uniform, trailing, leading, quadratic, karras, logsnr, tangent or given")
    if several:
        add("--guidance", type=scales, help="classifier-free scale; 1 is off. Several, as in 1,1.5,2,3, give curves")
    else:
        add("--guidance", type=float, help="classifier-free scale; 1 is off")
    add("--eta", type=float, help="ddim, dpmpp_2m, dpmpp_3m: share of the noise of the reverse SDE, 0 to 1")
    add("--variance", help="ddpm: upper, lower or optimal (measured once, and kept in the run)")
    add("--churn", type=float, help="euler, heun: noise added and removed again, shared out over the steps")
    add(
        "--logsnr-limits",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="spacings karras and logsnr: from which log-SNR to which, before the step to data",
    )
    add("--times", type=float, nargs="+", metavar="T", help="spacing given: all times, from 1 (noise) to 0 (data)")
    if chunk:
        add("--chunk", type=int, help="pictures per pass of the network; a part of the recipe")


def scales(text: str) -> float | tuple[float, ...]:
    """Read one scale of guidance, or several that increase: "1,1.5,2".

    Raises:
        ValueError: it is something else.
    """
    found = tuple(float(part) for part in text.split(","))
    if list(found) != sorted(set(found)):
        raise ValueError(f"scales must increase: {text}")
    return found if len(found) > 1 else found[0]


def shape(text: str) -> tuple[int, int]:
    """Read the size of a picture, "96x64" for 96 wide and 64 high, as (height, width).

    Raises:
        ValueError: it is something else.
    """
    width, height = map(int, text.split("x"))
    return height, width


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how the best of several candidates is found."""
    add = parser.add_argument_group("selection of the best of several candidates (with --best-of)").add_argument
    add(
        "--scorer",
        default="prompt_accuracy",
        help="who says which is best: prompt_accuracy (share of the prompt's attributes that the verifier of the "
        "Shapes finds right, 0 to 1), readable (1 if it can read the picture), the folder of a run that has trained a "
        "scorer, a published CLIP (clip:FOLDER, clip:ViT-B-32:weights.safetensors), or several with weights, as in "
        "runs/scorer=1,readable=0.5 (default: the first)",
    )
    add(
        "--reject",
        nargs="+",
        default=[],
        metavar="STEP:SHARE",
        help="after this step of the sampler judge previews and go on with the best share, as in 6:0.5 12:0.5",
    )


def asked(options: argparse.Namespace) -> dict[str, object]:
    """Give the settings that were asked for, by their names in the configuration."""
    return {name: value for name in NAMES if (value := getattr(options, name, None)) is not None}
