"""Whose speed is measured: a run's model, or the network of a preset with random weights."""

import argparse

import torch

from diffusion.pipeline import Pipeline
from lab import runtime as runtimes
from lab.randomness import seeded
from scripts.assembly import assemble, drawing, experiments
from scripts.assembly.experiments import TextToImageExperiment

PROMPTS = ("a red circle left of a blue square", "a green ring", "a pink diamond above a black cross", "")


def subject(options: argparse.Namespace) -> tuple[Pipeline, TextToImageExperiment]:
    """Give what draws, and the configuration that it comes from."""
    if options.run is not None:
        trained = drawing.trained(options.run)
        return trained.pipeline, trained.experiment
    experiment = assemble.complete(experiments.diffusion(experiments.load(options.preset, []), options.preset))
    runtime = runtimes.start(experiment.runtime)
    stage = assemble.diffusion_stage(experiment, runtime)
    model = runtime.place(stage.players["model"]).eval()
    with torch.no_grad(), seeded(experiment.seed, "benchmark"):
        for parameter in model.parameters():
            if not parameter.any():  # what starts at zero would make every prediction zero
                parameter.normal_(0, 0.02)
    return stage.pipeline(model), experiment
