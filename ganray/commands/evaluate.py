"""Evaluate a trained generator, or compare two."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace

import torch

from ganray.commands.load_generator import TrainedGenerator, list_runs, load_generator
from ganray.config.commands import EvaluateConfig, home_folder
from ganray.config.schema import Config
from ganray.data import prepare
from ganray.data.format import Shape
from ganray.distributed import local_device
from ganray.errors import UserError
from ganray.evaluation.reference import ReferenceSet, check_comparable, prepare_classifier
from ganray.evaluation.report import (
    EvaluationReport,
    conclusion,
    differences,
    evaluate_generator,
    table,
)
from ganray.training.journal import history

logger = logging.getLogger(__name__)


def evaluate(options: EvaluateConfig) -> None:
    """Evaluate one generator, or two with their differences, and add the reports to MLflow.

    Without a run, list the runs there are.

    Raises:
        UserError: The input is invalid; raised before anything is measured.
    """
    home = home_folder(options.home)
    if not options.run:
        logger.info(list_runs(home))
        return
    names = [options.run] + ([options.against] if options.against else [])
    generators = [load_generator(name, home, options.tracking_uri) for name in names]
    config = _reference_config(generators[0], options)
    data = config.reference_data()
    plan = prepare.plan_dataset(data, config.home)
    digest = prepare.prepare_dataset(data, plan)
    with closing(prepare.open_dataset(data, plan.location)) as images:
        classifier = prepare_classifier(config, images, digest, local_device())
        reference = ReferenceSet(images, data, classifier, config.evaluation)
        for generator in generators:
            _check_shape(generator, reference.shape)
        reports = [_evaluate(generator, reference, options) for generator in generators]
    labels = [generator.label for generator in generators]
    if labels[1:] == labels[:1]:  # runs of one name in two homes
        labels[1] += "-against"
    for generator, label, report in zip(generators, labels, reports, strict=True):
        is_full = options.report == "full"
        logger.info(f"\n{generator.source}\n{table(report.metrics, is_full)}\n{conclusion(report)}")
        out = options.out / label if options.out and options.against else options.out
        source = {"run": generator.config.name, "source": generator.source, "reference": digest}
        files = report.write(generator.output_folder("evaluation", out, home), source)
        logger.info(f"report      {files[0]}\npage        {files[1]}")
        generator.log(files, "evaluation")
    if options.against:
        logger.info(f"\n{labels[0]} minus {labels[1]}, with 95 % intervals")
        for name, difference in differences(reports[0].metrics, reports[1].metrics).items():
            differs = "differ" if difference.low > 0 or difference.high < 0 else ""
            logger.info(f"{name:20s} {difference.brief():>30s}  {differs}".rstrip())


def _reference_config(generator: TrainedGenerator, options: EvaluateConfig) -> Config:
    """Return the run's config, changed to find its reference images on this machine."""
    config = generator.config
    config = replace(config, evaluation=replace(config.evaluation, report_samples=options.samples))
    if generator.folder is None:  # the run's home may be on another machine
        config = replace(config, home=home_folder(options.home))
    if options.data_root:
        config = replace(config, data=replace(config.data, root=options.data_root))
    return config


def _check_shape(generator: TrainedGenerator, reference: Shape) -> None:
    z = torch.zeros(1, generator.config.latent.size)
    height, width, channels = generator.images(z).shape[1:]
    try:
        check_comparable((height, width, channels), reference)
    except UserError as error:
        raise UserError(f"{generator.source}: {error}") from error


def _evaluate(
    generator: TrainedGenerator, reference: ReferenceSet, options: EvaluateConfig
) -> EvaluationReport:
    report = evaluate_generator(
        generator.config,
        generator.G,
        generator.classes,
        reference,
        samples=options.samples,
        resamples=options.resamples,
        title=generator.label,
        saturation=history(generator.config.run_folder(), "discriminator/saturation")[1],
    )
    if report is None:
        raise UserError(
            f"{len(reference.images)} reference images are too few; use at least 320, as the"
            " classifier is trained on half of them and a quarter is the control"
        )
    return report
