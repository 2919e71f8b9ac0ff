"""Evaluate a trained generator, or compare two."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from ganray.commands import load_generator
from ganray.commands.load_generator import TrainedGenerator
from ganray.config.commands import EvaluateConfig, home_folder
from ganray.config.schema import Config
from ganray.data import prepare
from ganray.data.format import Shape
from ganray.distributed import local_device
from ganray.errors import UserError
from ganray.evaluation.reference import ReferenceSet, check_comparable, prepare_classifier
from ganray.evaluation.report import EvaluationReport, differences, evaluate_generator, table
from ganray.training.journal import history

logger = logging.getLogger(__name__)


def evaluate(options: EvaluateConfig) -> None:
    """Evaluate one generator, or two with their differences, and add the reports to MLflow.

    Raises:
        UserError: The input is invalid; raised before anything is measured.
    """
    names = [options.run] + ([options.against] if options.against else [])
    found = [
        load_generator.load_generator(name, home_folder(options.home), options.tracking_uri)
        for name in names
    ]
    config = _config(found[0], options)
    data = config.reference_data()
    made = prepare.plan_dataset(data, config.home)
    digest = prepare.prepare_dataset(data, made)
    with closing(prepare.open_dataset(data, made.location)) as images:
        classifier = prepare_classifier(config, images, digest, local_device())
        reference_set = ReferenceSet(images, data, classifier, config.evaluation)
        for each in found:
            _check_fits(each, reference_set.shape)
        assessed = [_assess(each, reference_set, options) for each in found]
    labels = [each.label for each in found]
    if labels[1:] == labels[:1]:  # runs of one name in two homes
        labels[1] += "-against"
    for each, label, assessment in zip(found, labels, assessed, strict=True):
        logger.info(f"\n{each.source}\n{table(assessment.report)}")
        logger.info(f"diagnosis   {assessment.diagnosis}")
        out = options.out / label if options.out and options.against else options.out
        folder = each.output_folder("evaluation", out, home_folder(options.home))
        _keep(each, assessment, digest, folder)
    if options.against:
        logger.info(f"\n{labels[0]} minus {labels[1]}, with 95 % intervals")
        for name, value in differences(assessed[0].report, assessed[1].report).items():
            apart = "differ" if value.low > 0 or value.high < 0 else ""
            logger.info(f"{name:20s} {value.brief():>30s}  {apart}".rstrip())


def _config(found: TrainedGenerator, options: EvaluateConfig) -> Config:
    """Return the run's config with the options, and with this machine's home if need be."""
    evaluation = replace(found.config.evaluation, report_samples=options.samples)
    config = replace(found.config, evaluation=evaluation)
    if found.folder is None:  # the run's home may be on another machine
        config = replace(config, home=home_folder(options.home))
    root = options.data_root
    return replace(config, data=replace(config.data, root=root)) if root else config


def _check_fits(found: TrainedGenerator, reals: Shape) -> None:
    height, width, channels = found.images(torch.zeros(1, found.config.latent.size)).shape[1:]
    try:
        check_comparable((height, width, channels), reals)
    except UserError as error:
        raise UserError(f"{found.source}: {error}") from error


def _assess(
    found: TrainedGenerator, reference_set: ReferenceSet, options: EvaluateConfig
) -> EvaluationReport:
    result = evaluate_generator(
        found.config,
        found.G,
        found.classes,
        reference_set,
        samples=options.samples,
        resamples=options.resamples,
        title=found.label,
        saturation=history(found.config.run_folder(), "D/saturation")[1],
    )
    if result is None:
        raise UserError(
            f"{len(reference_set.images)} reference images are too few; use at least 320, as the"
            " classifier is trained on half of them and a quarter is the control"
        )
    return result


def _keep(found: TrainedGenerator, assessment: EvaluationReport, digest: str, folder: Path) -> None:
    """Write the report and add it to the artifacts of the MLflow run."""
    about = {"run": found.config.name, "source": found.source, "reference": digest}
    files = assessment.write(folder, about)
    logger.info(f"report      {files[0]}\npage        {files[1]}")
    found.log(files, "evaluation")
