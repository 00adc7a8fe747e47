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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting of the sampler; one that is not given keeps the run's own value."""
    add = parser.add_argument_group("settings of the sampler (defaults: the run's own, stage.sampling)").add_argument
    add(
        "--sampler",
        help="ddim, ddpm, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_3m, unipc_2, unipc_3, plms or lms",
    )
    add("--steps", type=int, help="steps, one denoiser call each (heun: two)")
    add("--spacing", help="of the steps: uniform, trailing, leading, quadratic, karras, logsnr, tangent or given")
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
    add("--chunk", type=int, help="pictures per pass of the network; a part of the recipe")


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how the best of several candidates is found."""
    add = parser.add_argument_group("selection of the best of several candidates (with --best-of)").add_argument
    add(
        "--scorer",
        default="prompt_accuracy",
        help="prompt_accuracy (share of the prompt's attributes that the verifier of the Shapes finds right, 0 to 1), "
        "readable (1 if it can read the picture), or both with weights, prompt_accuracy=1,readable=0.5 (default: the "
        "first). Both are the verifier that judges runs: what it selected and then judges is no evidence of quality",
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
    return {name: getattr(options, name) for name in NAMES if getattr(options, name) is not None}
